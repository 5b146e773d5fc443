"""Tests of problems, plans and outputs as text: one line, without reading the tensors' entries."""

import pytest
import torch
from hypothesis import given
from strategies import problems

import sparsekit as sk
from sparsekit import Blocks, Output, Plan, Problem, Tokens

STACKED = sk.Pipeline([sk.TokenCoverage(tau=0.3, min_tokens=16, voters=8), sk.BlockTopK(0.5, 16)], break_even=0)


@given(problems())
def test_each_is_one_short_line(p):
    plan = STACKED.decide(p)
    for thing in (p, plan, plan.queries, plan.blocks, sk.oracle(p)):
        assert "\n" not in repr(thing) and len(repr(thing)) < 400 and str(thing) == repr(thing)


def test_it_tells_shapes_dtypes_what_is_kept_and_what_is_not_the_default():
    q, k = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    assert repr(Problem.of(q, k, k)).startswith("Problem(q=float32[1, 4, 6, 8], k=float32[1, 2, 6, 8], v=float32[")
    assert "window" not in repr(Problem.of(q, k, k)) and "causal" not in repr(Problem.of(q, k, k))
    assert "sliding_window=3" in repr(Problem.of(q, k, k, sliding_window=3)) and "causal=False" in repr(
        Problem.of(q, k, k, False)
    )
    assert repr(Plan()) == "Plan()"
    two, one = (Tokens.of(torch.arange(6) % n == 0) for n in (torch.tensor([[[2]]]), torch.tensor([[[2], [5]]])))
    assert repr(two) == "Tokens(3 of 6, idx=int32[1, 1, 3])"
    assert repr(one) == "Tokens(at most 3 of 6, idx=int32[1, 2, 3])"
    blocks = Blocks.of(torch.eye(3, dtype=torch.bool)[None, None], (2, 2))
    assert repr(blocks) == "Blocks(at most 1 of 3 in a list, size=(2, 2), indices=int32[1, 1, 3, 1])"
    same = Plan(two, two, None, sk.SlidingWindow(4, 0), 2)
    assert repr(same) == f"Plan(queries={two!r}, keys=queries, fill=SlidingWindow(window=4, sinks=0), dense_last=2)"
    assert repr(Plan(two, one)) == f"Plan(queries={two!r}, keys={one!r})"


@pytest.mark.parametrize("device", ["meta"])
def test_no_device_is_waited_for(device):
    """No entry of a tensor on this device can be read."""
    x = torch.empty(1, 2, 6, 8, device=device)
    tokens = Tokens(torch.empty(1, 1, 3, dtype=torch.int32, device=device), 6)
    lists = Blocks(x[0, 0].int(), torch.empty(1, 1, 3, 2, dtype=torch.int32, device=device), (2, 2), 3)
    for thing in (Problem.of(x, x, x), Plan(tokens, tokens, lists), Output(x, x)):
        assert f"on {device}" in repr(thing)
