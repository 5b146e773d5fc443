"""Tests of the embedded model: it is small, transformers loads it, and it can do its tasks."""

import json

import pytest
import torch

from bench.model.card import card as written
from sparsekit.testbed import CLAIMED, MODEL_PATH, TASKS, evaluate, generate_answer, load_model, read_text

TEXT = read_text()


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_it_is_what_transformers_loads(model):
    from transformers import AutoModelForCausalLM

    same = AutoModelForCausalLM.from_pretrained(MODEL_PATH)
    assert type(same).__name__ == "LlamaForCausalLM" and same.config.vocab_size == 256
    assert same.config.max_position_embeddings == 131072
    assert (MODEL_PATH / "model.safetensors").stat().st_size <= 16_000_000
    assert same.model.rotary_emb.inv_freq.equal(model.model.rotary_emb.inv_freq), "rope theta survives"


@pytest.mark.parametrize("task", CLAIMED)
def test_it_answers(model, task):
    scores = evaluate(model, [TASKS[task](TEXT, 1024, seed) for seed in (1, 2, 3)])
    assert sum(s.found for s in scores) >= 0.95 * sum(s.answers for s in scores)
    assert all(s.found == s.answers for s in scores if s.whole)


def test_it_reads_the_text_and_not_its_memory(model):
    """Without the fact in the prompt it cannot know the digits."""
    sample = TASKS["single_key"](TEXT, 1024, 1)
    body, question = sample.prompt.rsplit(b"\n# Recall:\n", 1)
    gone = b"\n".join(line for line in body.split(b"\n") if sample.answer not in line)
    answer = generate_answer(model, gone + b"\n# Recall:\n" + question, len(sample.answer))
    assert answer != sample.answer


def test_the_card_says_what_was_measured():
    report, training = (json.loads((MODEL_PATH / f"{name}.json").read_text()) for name in ("evaluation", "training"))
    card = (MODEL_PATH / "README.md").read_text()
    assert card == written(report, training, (MODEL_PATH / "model.safetensors").stat().st_size)
    for length in (2048, 4096, 8192, 16384, 32768, 65536, 131072):
        row = report["digits"][str(length)]["all"]
        assert row["digits"] >= 400 and f"{row['right']}/{row['digits']}" in card
        assert row["right"] / row["digits"] >= (0.99 if length <= 32768 else 0.97)
    assert all(f"{bits:.3f}" in card for bits in report["bits_per_byte"].values())


def test_answers_of_no_length_are_refused(model):
    with pytest.raises(ValueError, match="n=0"):
        generate_answer(model, b"abc", 0)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate_answer(model, b"", 1)


def test_logits_of_the_prompt_match_a_plain_forward(model):
    sample = TASKS["multi_key"](TEXT, 1024, 5)
    with torch.no_grad():
        logits = model(torch.tensor([list(sample.prompt)])).logits[0, -1]
    assert generate_answer(model, sample.prompt, 1) == bytes([int(logits.argmax())])
