"""Tests of models with unusual attention: sparsekit runs them right or refuses them, and never gives other answers."""

import pytest
import torch
import transformers

from bench.transformers_sweep import CLOSE, DENSE, KEEP_ALL, SPARSE, differences, error, state
from sparsekit.integrations.transformers import sparsify
from tests.odd_models import ALONE, ODD

KNOWN = {name: odd for name, odd in ODD.items() if hasattr(transformers, odd.model)}  # older versions lack some
PADDED = [name for name, odd in KNOWN.items() if not odd.inputs() and odd.model != "RwkvForCausalLM"]


@pytest.fixture(params=KNOWN)
def odd(request):
    """Return the name of an odd model, the model, and the function that calls it."""
    return request.param, KNOWN[request.param].build(), KNOWN[request.param]


@pytest.mark.parametrize("setting", [DENSE, KEEP_ALL])
def test_a_setting_that_keeps_everything_gives_the_models_own_answer_or_is_refused(odd, setting):
    name, model, how = odd
    paddings = (0, 11) if name in PADDED else (0,)
    own, truths = how.call(model), [how.right(model, padding) for padding in paddings]
    before = state(model)
    try:
        handle = sparsify(model, setting)
    except ValueError as refusal:
        assert how.model in str(refusal)
    else:
        try:
            answers = [how.call(model, padding) for padding in paddings]
        finally:
            handle.restore()
        assert max(map(error, answers, truths)) < CLOSE
    assert differences(before, state(model)) == []
    assert torch.equal(how.call(model), own)


def test_what_does_not_run_sparse_is_refused_or_says_why(odd):
    _, model, how = odd
    calls = []
    try:
        handle = sparsify(model, SPARSE, watch=calls.append)
    except ValueError as refusal:
        assert how.model in str(refusal)
        return
    try:
        how.call(model)
    finally:
        handle.restore()
    assert handle.dense or any(call.plan.density(call.problem) < 1 for call in calls)


@pytest.mark.parametrize("name", [name for name in KNOWN if name in ALONE])
def test_a_model_none_of_whose_layers_asks_the_interface_is_refused(name):
    model = KNOWN[name].build()
    before = state(model)
    with pytest.raises(ValueError, match=KNOWN[name].model):
        sparsify(model, SPARSE)
    assert differences(before, state(model)) == []


@pytest.mark.parametrize(
    "name, layers", [("DBRX", {0, 1}), ("Idefics", {0, 1}), ("Gemma 4 with audio", {0, 1}), ("BLT", {0})]
)
def test_a_part_without_an_implementation_leaves_the_decoder_sparse(name, layers):
    if name not in KNOWN:
        pytest.skip("this version of transformers lacks it")
    model, calls = KNOWN[name].build(), []
    with sparsify(model, SPARSE, watch=calls.append):
        KNOWN[name].call(model)
    assert {call.layer for call in calls if call.plan.density(call.problem) < 1} == layers


def test_a_tower_without_a_chosen_layer_keeps_its_implementation():
    if "Gemma 4 with audio" not in KNOWN:
        pytest.skip("this version of transformers lacks it")
    model = KNOWN["Gemma 4 with audio"].build()
    tower = model.config.audio_config._attn_implementation
    with sparsify(model, SPARSE):
        assert model.config.audio_config._attn_implementation == tower
