"""Tests that problems, plans and their parts are equal by value: `==` is a bool, and rarely waits for a device."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import problems, randn, whole_plans

from sparsekit import Blocks, Output, Plan, Problem, SlidingWindow, Tokens, attend


def again(x):
    """Return an equal copy in other memory."""
    if isinstance(x, torch.Tensor):
        return x.clone()
    if isinstance(x, Plan | Problem | Tokens | Blocks | Output):
        return replace(x, **{name: again(value) for name, value in vars(x).items()})
    return x


@settings(max_examples=40)
@given(data=st.data())
def test_equal_is_what_holds_the_same(data):
    p = data.draw(problems())
    plan, other = data.draw(whole_plans(p)), data.draw(whole_plans(p))
    for x in (p, plan, attend(p, plan), *(part for part in (plan.queries, plan.keys, plan.blocks) if part)):
        copy = again(x)
        assert x == x and x == copy and not x != copy and hash(x) == hash(copy)
        assert x in [copy] and [copy].index(x) == 0 and len({x, copy}) == 1
        assert x != 3 and x != None and not x == "plan"  # noqa: E711
    if not torch.equal(plan.pairs(p), other.pairs(p)):
        assert plan != other and plan not in [other]


def changes(x):
    """Yield the name and a changed value of each field, one at a time."""
    for name, value in vars(x).items():
        if isinstance(value, torch.Tensor):
            yield name, value + 1
            yield name, value[..., :-1]
            yield name, value.to(torch.float16)
        elif isinstance(value, Tokens | Blocks):
            yield from ((name, new) for _, new in changed(value))
            yield name, None
        elif isinstance(value, SlidingWindow):
            yield name, SlidingWindow(77, sinks=0)
        elif name in ("scale", "n", "dense_last"):
            yield name, value + 1
        elif name == "causal":
            yield name, not value


def changed(x):
    return [(name, replace(x, **{name: value})) for name, value in changes(x)]


def example():
    p = Problem.of(*(randn(i, 1, 2, 6, 4) for i in range(3)))
    t = Tokens.of(torch.arange(6).remainder(3).bool().expand(1, 1, 6))
    return p, Plan(t, t, Blocks.of(torch.ones(1, 1, 2, 2, dtype=torch.bool), (2, 2)), SlidingWindow(3, sinks=0), 2)


@pytest.mark.parametrize("kind", ["problem", "plan", "output"])
def test_each_field_counts(kind):
    p, plan = example()
    x = {"problem": p, "plan": plan, "output": attend(p, plan)}[kind]
    others = changed(x)
    fields = {"problem": "q k v scale causal", "plan": "queries keys blocks fill dense_last", "output": "o lse"}
    assert {name for name, _ in others} >= set(fields[kind].split())
    for name, other in others:
        assert x != other and other != x, name


def test_what_is_only_known_does_not_count():
    p, plan = example()
    assert replace(p, full=False, queries_last=False, gapless=False) == p
    assert Tokens(plan.queries.idx, 6, full=not plan.queries.full) == plan.queries


def test_a_comparison_that_kinds_decide_looks_at_no_entry(monkeypatch):
    """Nor does a comparison of a tensor with itself: reading entries would wait for their device."""
    _, plan = example()
    monkeypatch.setattr(torch, "equal", None)
    assert plan != Plan() and Plan() != plan and Plan(blocks=plan.blocks) != Plan() and Plan(plan.queries) != plan
    assert Plan(again(plan.queries), blocks=plan.blocks) != Plan(plan.queries), "a copy is not looked at either"
    assert plan == plan and replace(plan) == plan and replace(plan, dense_last=3) != plan
    assert Plan() == Plan() and {Plan(): 1}[Plan()] == 1
    assert isinstance(hash(plan), int)


def test_tensors_of_several_devices_are_not_equal():
    _, plan = example()
    assert plan != replace(plan, queries=replace(plan.queries, idx=plan.queries.idx.to("meta")))
