"""Hypothesis strategies for the laws: small problems, tokens, blocks, plans. Numbers are float64, seeded and finite."""

import importlib
import pkgutil
from dataclasses import replace
from itertools import combinations, product

import torch
from hypothesis import settings
from hypothesis import strategies as st

import sparsekit as sk
from sparsekit import Blocks, Plan, Problem, Tokens
from sparsekit.problem import PAD
from sparsekit.testing.strategies import FILLS as FILLS
from sparsekit.testing.strategies import SEEDS as SEEDS
from sparsekit.testing.strategies import problems as problems
from sparsekit.testing.strategies import randn as randn
from sparsekit.testing.strategies import windowed as windowed
from sparsekit.testing.strategies import with_blocks as with_blocks

MODULES = [importlib.import_module(m.name) for m in pkgutil.iter_modules(sk.stages.__path__, "sparsekit.stages.")]
EXAMPLES = [stage for module in MODULES for stage in module.EXAMPLES]


def named(xs):
    return dict(argvalues=xs, ids=[getattr(x, "__name__", repr(x)).removeprefix("sparsekit.stages.") for x in xs])


def tries(n):
    """Return settings with `n` examples for a profile of 60; a profile with fewer gets proportionally fewer."""
    return settings(max_examples=max(n * settings.default.max_examples // 60, 2))


def covering(meeting, *factors):
    """Choose greedily a few cases of the product; any values of any `meeting` factors occur together in one of them."""
    where = list(combinations(range(len(factors)), meeting))
    meetings = {case: {(at, tuple(case[i] for i in at)) for at in where} for case in product(*factors)}
    cases, left = [], set().union(*meetings.values())
    while left:
        cases.append(max(meetings, key=lambda case: len(meetings[case] & left)))
        left -= meetings[cases[-1]]
    return cases


@st.composite
def padded(draw, most=24):
    """Draw sequences of different lengths with padding at their ends."""
    p = draw(problems(square=True, most=most))
    x = (torch.cat((t, 1.0 - t.flip(2))) for t in (p.q, p.k, p.v))
    p = Problem.of(*x, causal=p.causal)
    real = torch.tensor([draw(st.integers(1, p.q.shape[2])) for _ in range(p.q.shape[0])])[:, None, None]
    pos = p.q_pos.masked_fill(torch.arange(p.q.shape[2]) >= real, PAD)
    return replace(p, q_pos=pos, k_pos=pos, full=False)


@st.composite
def tokens(draw, problem, side):
    """Draw the kept tokens of one side ("q" or "k"), ragged over heads and sequences; the last token is always kept."""
    n = problem.q.shape[2] if side == "q" else problem.k.shape[2]
    h = draw(st.sampled_from([1, problem.k.shape[1], problem.q.shape[1]]))
    chance = torch.rand(problem.q.shape[0], h, n, generator=torch.Generator().manual_seed(draw(SEEDS)))
    kept = chance < draw(st.sampled_from([0.2, 0.6, 1.0]))
    kept[..., -1] = True
    return Tokens.of(kept)


@st.composite
def blocks(draw, problem, size=None):
    """Draw random blocks in the grid of a problem; some query blocks may have none."""
    m, n = size or (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    h = draw(st.sampled_from([1, problem.k.shape[1], problem.q.shape[1]]))
    grid = (problem.q.shape[0], h, -(-problem.q.shape[2] // m), -(-problem.k.shape[2] // n))
    chance = torch.rand(*grid, generator=torch.Generator().manual_seed(draw(SEEDS)))
    return Blocks.of(chance < draw(st.sampled_from([0.2, 0.6, 1.0])), (m, n))


@st.composite
def whole_plans(draw, problem):
    """Draw plans with a fill, and sometimes with last queries that see everything."""
    last = draw(st.sampled_from([0, 0, 1, 3, 100]))
    return replace(draw(plans(problem)), dense_last=last)


@st.composite
def plans(draw, problem, fill=True):
    queries = draw(tokens(problem, "q")) if draw(st.booleans()) else None
    keys = queries if draw(st.booleans()) and problem.q.shape[2] == problem.k.shape[2] else None
    keys = keys or (draw(tokens(problem, "k")) if draw(st.booleans()) else None)
    plan = Plan(queries, keys, fill=draw(FILLS) if fill else None)
    if draw(st.booleans()):
        plan = plan.then(Plan(blocks=draw(blocks(plan.compress(problem)))))
    return plan
