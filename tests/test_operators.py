"""Tests that every op is a lawful operator, gives the same result, and works in a custom compiled stage."""

from dataclasses import replace

import pytest
import torch
from arguments import WHERE, arguments, tensors
from torch.library import opcheck

from sparsekit import NoBackendError, Output, Plan, Problem, SlidingWindow, Tokens, dispatch, operators
from sparsekit.samples import Samples

GIVEN = Samples(device=WHERE)
B, H, G, N, D = GIVEN.B, GIVEN.H, GIVEN.G, GIVEN.N, GIVEN.D
rand = GIVEN.rand


@pytest.mark.parametrize("op", dispatch.ops())
def test_it_is_a_lawful_operator_with_the_same_answer(op):
    operator = getattr(torch.ops.sparsekit, op).default
    for args in arguments(op, GIVEN):
        given = operators.flat(*args)
        opcheck(operator, tuple(given))
        got, expected = tensors(operator(*given)), tensors(dispatch.run(op, WHERE, *args))
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.is_contiguous()
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_plan_of_another_problem_is_refused():
    p = Problem.of(*(rand(i, B, G, N + 1, D) for i in range(3)))
    with pytest.raises(ValueError, match="plan.queries: chosen out of 24 tokens"):
        torch.ops.sparsekit.attend(*operators.flat(p, GIVEN.filled()))
    with pytest.raises(NoBackendError, match="not a sliding window"):
        torch.ops.sparsekit.sliding_window(*operators.flat(p, Plan()))


class Operators:
    """Calls ops as operators, and builds the results that the plain functions return."""

    def __getattr__(self, op):
        def call(*args):
            answer = getattr(torch.ops.sparsekit, op)(*operators.flat(*args))
            if op == "select_tokens":
                return Tokens(answer, args[0].shape[-1])
            if op == "gather_tokens":
                q, k, v, q_pos, k_pos = answer
                return replace(args[0], q=q, k=k, v=v, q_pos=q_pos, k_pos=k_pos, **args[1].hints(args[0]))
            return Output(*answer) if op in ("attend", "scatter_tokens") else answer

        return call


class Plain:
    """Calls ops as pipelines do."""

    def __getattr__(self, op):
        return lambda *args: dispatch.run(op, WHERE, *args)


def own_pipeline(ops, q, k, v):
    """Compute Token Coverage op by op."""
    p, K = Problem.of(q, k, v), k.shape[2]
    number = lambda n: torch.tensor(n)  # noqa: E731
    votes, mean = ops.token_votes(ops.window_scores(p, 4, False)[0], number(K - 4), number(K), 3, 2)
    drop = ops.token_budget(mean, 0.3, number(K - 8))
    tokens = ops.select_tokens(votes, (K - drop)[:, None].expand(votes.shape[:2]))
    plan = Plan(tokens, tokens, fill=SlidingWindow(3, sinks=0))
    return ops.scatter_tokens(p, plan, ops.attend(ops.gather_tokens(p, plan), Plan()))


def test_a_pipeline_of_operators_compiles_without_a_break():
    def layer(q, k, v):
        out = own_pipeline(Operators(), q * 2, k, v)
        return out.o.mul(0.5), out.lse

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (24, 40, 57):
        q, k, v = rand(0, B, H, length, D), rand(1, B, G, length, D), rand(2, B, G, length, 6)
        expected = own_pipeline(Plain(), q * 2, k, v)
        o, lse = compiled(q, k, v)
        torch.testing.assert_close(o, expected.o.mul(0.5))
        torch.testing.assert_close(lse, expected.lse)
