"""Tests that one pass over the right answer gives the score of generation, whatever the prefill ran inside."""

import pytest
import torch
from tiny_llama import byte_tokenizer

from sparsekit.integrations.transformers import sparsify
from sparsekit.testbed import TASKS, Sample, TextTokenizer, ask, evaluate, generate_answer, load_model, read_text
from sparsekit.testbed.evaluate import score

TEXT = read_text()
LOSSY = "streaming(sinks=32, window=256)"  # finds some facts and loses others


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def samples():
    """Return samples some of which LOSSY answers, and some not, in the text of Python 3.10, 3.11, 3.12 and 3.13."""
    return [TASKS[name](TEXT, 1024, seed) for seed in (1, 2) for name in ("single_key", "multi_value")]


@pytest.mark.parametrize("pipeline", ["dense", LOSSY])
def test_asking_is_generating(model, samples, pipeline):
    generated, asked = [], []
    for sample in samples:
        with sparsify(model, pipeline):
            answer = generate_answer(model, sample.prompt, len(sample.answer))
        generated.append(score(sample, answer))
        asked.append(ask(model, sample, how=lambda: sparsify(model, pipeline)))
    for sample, mine, theirs in zip(samples, asked, generated, strict=True):
        assert mine.whole == theirs.whole
        right = (a == b for a, b in zip(theirs.answer, sample.answer, strict=True))
        until = next((i + 1 for i, same in enumerate(right) if not same), None)
        assert mine.answer[:until] == theirs.answer[:until], "the same up to and with the first wrong byte"
    wrong = sum(not one.whole for one in asked)
    assert wrong == 0 if pipeline == "dense" else 0 < wrong < len(samples), "both outcomes are compared"


def test_only_the_prompt_is_read_inside(model, samples):
    lengths = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, given: lengths.append((model.config._attn_implementation, given["input_ids"].shape[1])),
        with_kwargs=True,
    )
    with hook:
        ask(model, samples[0], how=lambda: sparsify(model, LOSSY))
    assert lengths == [("sparsekit", 1024), ("sdpa", len(samples[0].answer) - 1)]


def test_other_tokenizers_generate_inside(model, samples):
    tokenizer = TextTokenizer(byte_tokenizer())
    with sparsify(model, LOSSY):
        generated = [score(s, generate_answer(model, s.prompt, len(s.answer))) for s in samples[1:]]
    assert evaluate(model, samples[1:], tokenizer=tokenizer, how=lambda: sparsify(model, LOSSY)) == generated
    assert not all(one.whole for one in generated)


def test_every_sample_is_asked_in_order(model, samples):
    seen = []
    scores = evaluate(model, samples[:2], on_step=lambda *step: seen.append(step))
    assert seen == [(i + 1, 2, one) for i, one in enumerate(scores)]
    assert scores == [ask(model, sample) for sample in samples[:2]]


def test_an_answer_of_one_byte_needs_no_second_pass(model):
    prompt = TASKS["single_key"](TEXT, 1024, 0)
    found = ask(model, Sample("one", prompt.prompt, prompt.answer[:1], (0,)))
    assert found.whole and found.answer == prompt.answer[:1] and found.part == 1.0


def test_values_are_the_runs_of_scored_bytes():
    sample = Sample("made", b"?", b"12345\na = 67890\nb = 1", (0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20))
    assert sample.values == ((0, 1, 2, 3, 4), (10, 11, 12, 13, 14), (20,))
    assert Sample("made", b"?", b"1", ()).values == ()


@pytest.mark.parametrize(
    "answer, right, found",
    [
        (b"12345\na = 67890", 10, 2),
        (b"12345\nb = 67890", 10, 2),  # bytes that are not scored do not count
        (b"12344\na = 67890", 9, 1),
        (b"12345\na = 67", 7, 1),  # too short
        (b"", 0, 0),
    ],
)
def test_a_value_is_found_if_all_its_bytes_are_right(answer, right, found):
    sample = Sample("made", b"?", b"12345\na = 67890", (0, 1, 2, 3, 4, 10, 11, 12, 13, 14))
    got = score(sample, answer)
    assert (got.right, got.found, got.digits, got.answers, got.part) == (right, found, 10, 2, found / 2)
    assert got.whole == (answer == sample.answer)


def test_the_model_is_left_as_it_was(model, samples):
    before = model.config._attn_implementation
    ask(model, samples[0], how=lambda: sparsify(model, LOSSY))
    assert model.config._attn_implementation == before and torch.is_grad_enabled()
