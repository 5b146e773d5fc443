"""The op `gather_tokens`: the shorter problem of the kept tokens, their queries, keys and values copied together."""

from itertools import product

from torch import Tensor

from ..plan import Plan, Tokens
from ..problem import Problem
from ..samples import Arguments, Samples


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None


def gather_tokens(problem: Problem, plan: Plan) -> Problem:
    """Return the shorter problem of the kept tokens."""
    return plan.compress(problem)


def fake(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def kept(x: Tensor, tokens: Tokens | None) -> Tensor:
        if tokens is None:
            return x.new_empty(x.shape)
        _, h, S = tokens.idx.shape
        return x.new_empty(x.shape[0], max(x.shape[1], h), S, *x.shape[3:])

    p, queries, keys = problem, plan.queries, plan.keys
    return kept(p.q, queries), kept(p.k, keys), kept(p.v, keys), kept(p.q_pos, queries), kept(p.k_pos, keys)


def samples(draw: Samples) -> Arguments:
    problems = {"": draw.problem(), "padding": draw.problem(padded=True)}
    pairs = product(draw.plans().items(), problems.items())
    return {", ".join(filter(None, (kind, what))): (problem, plan) for (kind, plan), (what, problem) in pairs}
