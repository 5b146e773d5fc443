"""Tests of the measurement of the integration's host time: both sides agree, and the model is restored."""

import pytest
import torch
from closeness import error

from bench.speed.host import LAYERS, NEVER, SPECS, added, bare, build, decode, main, prefill
from sparsekit import Pipeline
from sparsekit.integrations.transformers import sparsify


@pytest.fixture(scope="module")
def model():
    return build(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("spec", SPECS.values())
@pytest.mark.parametrize("keys", [0, NEVER])
@torch.no_grad()
def test_the_least_and_the_sparsified_answer_alike(model, spec, keys):
    pipeline, run = Pipeline([Pipeline.from_spec(spec)], break_even=keys), prefill(model, 48)
    with bare(model, pipeline):
        expected = run().last_hidden_state
    assert model.config._attn_implementation == "sdpa"
    with sparsify(model, pipeline) as handle:
        assert error(run().last_hidden_state, expected) < 1e-5
    assert not handle.dense


@torch.no_grad()
def test_what_is_timed_is_every_layer_and_a_decode_step_leaves_its_cache(model):
    step = decode(model, 16)
    with sparsify(model, "streaming") as handle:
        pass
    for _ in range(2):
        assert len(added(model, step, lambda: handle, lambda: bare(model, Pipeline()), 2)) == 4
    assert len(model.model.layers) == LAYERS and model.config._attn_implementation == "sdpa"


def test_every_row_has_its_numbers(capsys):
    main(tokens=16, repeats=1)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("ms a layer") and len(rows) == 3 + len(SPECS)
    assert all(len([float(x) for x in row[28:].split()]) == 5 for row in rows)
