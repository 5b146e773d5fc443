"""Tests of the sweep over transformers' classes: it detects each kind of fault, and its committed record has none."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench import transformers_sweep as sweep
from bench.transformers_matrix import RECORDS
from tests.odd_models import ODD

RECORD = RECORDS / "transformers" / "sweep-5.23.0.jsonl"


def examined(name):
    """Return the sweep's record of an odd model with one custom call."""
    model = ODD[name].build()
    call = sweep.Call(dict(input_ids=torch.randint(12, 90, (1, sweep.TOKENS))))
    with torch.no_grad():
        return {"layers": 2} | sweep.under_sparsekit(model, {"tokens": (call, call(model))})


def test_an_ordinary_model_is_equal_and_sparse_in_all_layers():
    record = examined("DBRX")
    assert sweep.verdict(record) == "equal" and sweep.how_sparse(record) == "all"


def test_a_refusal_is_recorded_with_its_text():
    record = examined("Bloom")
    assert sweep.verdict(record) == "refused" and "BloomForCausalLM" in record["refused"]


def test_a_wrong_answer_is_noticed(monkeypatch):
    right = sdpa_attention_forward  # the model's own attention stays so
    wrong = lambda *inputs, **how: (right(*inputs, **how)[0] * 1.001, None)  # noqa: E731
    monkeypatch.setattr("sparsekit.integrations.transformers.attention.sdpa_attention_forward", wrong)
    assert sweep.verdict(examined("DBRX")) == "wrong"


def test_an_attribute_left_behind_is_noticed():
    model = ODD["DBRX"].build()
    before = sweep.state(model)
    model.transformer.blocks[0].left = 1
    model.config._attn_implementation_internal = "eager"
    found = " ".join(sweep.differences(before, sweep.state(model)))
    assert "blocks.0.left: None -> 1" in found and "config: implementation: 'sdpa' -> 'eager'" in found


@pytest.mark.parametrize("name", [name for name in sweep.GIVEN if name != "Gemma4AssistantForCausalLM"])
def test_a_class_that_needs_more_than_tokens_is_called_and_judged(name):
    if not hasattr(transformers, name) or not hasattr(transformers.PreTrainedConfig, "sub_configs_defaults"):
        pytest.skip("this version of transformers lacks it")
    with torch.no_grad():
        model, own = sweep.build(name, Path("no tests"))
        calls = sweep.calls(model, own)
        truths = {key: (call, call(model)) for key, call in calls.items()}
        record = {"layers": 6} | sweep.under_sparsekit(model, truths)
    assert calls.keys() == {"tokens", "padded"} and sweep.verdict(record) == "equal"
    assert bool(record["sparse"]) != ("Assistant" in name)  # an assistant attends to all that it is given


def test_the_record_is_of_many_classes_and_has_no_fault():
    verdicts = {name: sweep.verdict(record) for name, record in sweep.read(RECORD).items()}
    assert {name: found for name, found in verdicts.items() if found in sweep.FAULTS} == {}
    assert sum(found in ("equal", "refused") for found in verdicts.values()) >= 251


def test_what_was_not_tried_stands_on_the_page_with_the_kind_of_reason():
    skipped = {
        "A": "ImportError: TimmWrapperModel requires the timm library but it was not found",
        "B": "tokens: IndexError: index out of range in self; own: RuntimeError: sizes differ",
        "C": "no test of it in these tests; ValueError: `condition_dim` (768) must equal `hidden_size` (32).",
        "D": "not done after 60 s",
        "F": "ValueError: The set of layer types producing a cache is different than the set of layer types using them",
        "E": 'own: NotImplementedError: Module [E] is missing the required "forward" function',
    }
    records = {name: {"class": name, "skipped": why} for name, why in skipped.items()}
    kinds = [sweep.why_not_tried(record) for record in records.values()]
    page = "\n".join(sweep.paragraph(records))
    assert len(set(kinds)) == 6 and "library" in kinds[0] and "inputs" in kinds[1] and "config" in kinds[2]
    assert all(f"- 1 not tried, {kind}: {name}." in page for name, kind in zip(records, kinds, strict=True))
