"""Tests that a handle reports what ran, and that a model without any sparse layer gets a warning."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.transformers_matrix import build, ids
from sparsekit import BlockTopK, Decompress, Pipeline, Plan, Problem, SlidingWindow, Streaming, Tokens
from sparsekit.integrations.transformers import sparsify
from sparsekit.integrations.transformers.ran import Kept, Ran

LOCAL = "streaming(sinks=1, window=8, block_size=8) | attend(break_even=0)"
SHORT = "streaming(sinks=1, window=8, block_size=8) | attend(break_even=1000)"


def problem(length, queries=None):
    drawn = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, 2, n, 4, generator=drawn) for n in (queries or length, length, length))
    return Problem.of(q, k, v)


@given(st.integers(1, 30), st.sampled_from([2, 4, 8]), st.integers(0, 3), st.booleans(), st.floats(0.0, 1.0))
def test_the_density_told_is_right_but_for_a_block_a_row(blocks, size, last, far, keep):
    stage = Streaming(1, 2 * size, size) if far else BlockTopK(keep or 0.1, size)
    p = problem(blocks * size)
    plan = Pipeline([stage, Decompress(dense_last=last * size)], break_even=0).decide(p)
    told = Kept.of(plan, blocks * size, blocks * size).density(blocks * size, blocks * size)
    assert abs(told - plan.density(p)) <= 1 / blocks


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 4), st.integers(1, 9), st.data())
def test_the_density_told_of_tokens_is_within_what_they_may_be(length, tokens, last, window, data):
    kept = torch.zeros(1, 1, length, dtype=torch.bool)
    kept[..., data.draw(st.permutations(range(length)))[: min(tokens, length)]] = True
    chosen = Tokens.of(kept)
    plan = Plan(chosen, chosen, None, SlidingWindow(window, 1), last)
    found = Kept.of(plan, length, length)
    assert found.queries == kept.sum().item() / length, "one choice for all heads"
    assert 0 < found.density(length, length) <= 1
    assert Kept.of(Plan(), length, length).density(length, length) == 1.0
    if len(chosen.idx[0, 0]) == length:
        assert found.density(length, length) == pytest.approx(1.0)


def test_nothing_is_waited_for_when_a_call_is_noted():
    q = torch.empty(1, 2, 64, 4, device="meta")  # any wait for this device is an error
    tokens = Tokens(torch.empty(1, 1, 16, dtype=torch.int32, device="meta"), 64)
    ran = Ran()
    ran.note([Plan(tokens, tokens, None, SlidingWindow(4))], q, q)
    ran.note(None, q, q)
    ran.note([Plan()], q, q)
    assert (ran.sparse, ran.kept.queries) == (2, 0.25)


@torch.no_grad()
def test_a_handle_counts_calls_and_tells_what_they_kept():
    model = build("Llama")
    with sparsify(model, {"1-2": LOCAL}) as handle:
        for length in (64, 80):
            model(ids(1, length))
        model.generate(ids(1, 80), max_new_tokens=3, do_sample=False)
        lines = str(handle).splitlines()
    assert lines[3].strip() == "6 prefill calls of layers, 6 sparse", "decode is none"
    plan = Streaming(1, 8, 8)(problem(80))
    told = float(lines[4].split("density about ")[1])
    assert "stages kept about 1.00" in lines[4] and abs(told - plan.density(problem(80))) <= 1 / 10
    assert len(repr(handle).splitlines()) == 1 and "2 of 3 layers, 6 prefill calls of layers, 6 sparse" in repr(handle)


@torch.no_grad()
def test_a_printed_handle_is_short_however_many_layers_differ():
    model = build("Llama")
    handle = sparsify(model, {i: f"streaming(sinks=1, window={8 + i}, block_size=8)" for i in range(3)})
    handle.dense.update({i: f"reason {i}" for i in range(9)})
    text = str(handle)
    handle.restore()
    assert len(text.splitlines()) <= 12 and "and 6 more" in text


@torch.no_grad()
@pytest.mark.parametrize("spec,why", [(SHORT, "40 tokens are below the break-even of 1,000"), (LOCAL, None)])
@pytest.mark.parametrize("way", ["with", "restore"])
def test_a_model_that_ended_dense_everywhere_is_told_of_once(spec, why, way):
    model = build("Llama")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        handle = sparsify(model, spec)
        for _ in range(2):
            if way == "with":
                with handle:
                    model(ids(1, 40))
            else:
                model(ids(1, 40))
                handle.restore()
    told = [str(one.message) for one in said]
    assert len(told) == bool(why), told
    if why:
        assert told[0].startswith("sparsekit: LlamaForCausalLM ran dense in all of its prefills: ") and why in told[0]
        assert said[0].filename == __file__ and f"layers 0-2 ran dense: {why}" in str(handle)


@torch.no_grad()
def test_what_was_told_or_asked_for_or_never_called_is_not_told_again():
    model = build("Llama")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with sparsify(model, LOCAL):
            pass
        with sparsify(model, "dense"):
            model(ids(1, 40))
        with sparsify(model, {"1": LOCAL, "2": SHORT}):
            model(ids(1, 40))
        with pytest.raises(KeyError), sparsify(model, SHORT):
            model(ids(1, 40))
            raise KeyError
        assert not said
        with sparsify(model, LOCAL):
            model(ids(1, 40), output_attentions=True)
    (one,) = [str(one.message) for one in said]
    assert "runs dense: output_attentions=True" in one
