"""What the laws are tried on: small problems, tokens, blocks, plans. float64, seeded, without the crazy numbers."""

import importlib
import pkgutil
from dataclasses import replace
from itertools import combinations, product

import torch
from hypothesis import strategies as st

import sparsekit as sk
from sparsekit import Blocks, Plan, Problem, SlidingWindow, Tokens, Union, Zeros
from sparsekit.problem import PAD

MODULES = [importlib.import_module(m.name) for m in pkgutil.iter_modules(sk.stages.__path__, "sparsekit.stages.")]
EXAMPLES = [stage for module in MODULES for stage in module.EXAMPLES]
SEEDS = st.integers(0, 2**16)


def named(xs):
    return dict(argvalues=xs, ids=[getattr(x, "__name__", repr(x)).removeprefix("sparsekit.stages.") for x in xs])


def covering(meeting, *factors):
    """A few cases in which any values of any `meeting` factors meet, as they do in the product of all: greedily."""
    where = list(combinations(range(len(factors)), meeting))
    meetings = {case: {(at, tuple(case[i] for i in at)) for at in where} for case in product(*factors)}
    cases, left = [], set().union(*meetings.values())
    while left:
        cases.append(max(meetings, key=lambda case: len(meetings[case] & left)))
        left -= meetings[cases[-1]]
    return cases


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def problems(draw, square=None, causal=None, most=24):
    G = draw(st.sampled_from([1, 2]))
    B, H = draw(st.integers(1, 2)), G * draw(st.sampled_from([1, 2]))
    K = draw(st.integers(1, most))
    square = draw(st.booleans()) if square is None else square
    Q = K if square else draw(st.integers(1, K))
    D, Dv = draw(st.sampled_from([1, 4, 5])), draw(st.sampled_from([4, 3]))
    sharp = draw(st.sampled_from([0.3, 1.0, 4.0]))  # flat to peaked attention
    q, k, v = (randn(draw(SEEDS), *s) for s in ((B, H, Q, D), (B, G, K, D), (B, G, K, Dv)))
    return Problem.of(q * sharp, k, v, causal=draw(st.booleans()) if causal is None else causal)


@st.composite
def windowed(draw, square=None, most=24):
    """A causal problem, its window, and sometimes padding at the end of a row."""
    p = draw(problems(square=square, causal=True, most=most))
    p = Problem.of(p.q, p.k, p.v, window=draw(st.integers(1, p.k.shape[2] + 1)))
    if draw(st.booleans()) and p.q.shape[2] == p.k.shape[2] > 1:
        n = draw(st.integers(1, p.q.shape[2] - 1))
        pos = p.q_pos.clone()
        pos[0, :, n:] = PAD
        p = replace(p, q_pos=pos, k_pos=pos, full=False)
    return p


@st.composite
def padded(draw, most=24):
    """Sequences of different lengths, the padding at their ends."""
    p = draw(problems(square=True, most=most))
    x = (torch.cat((t, 1.0 - t.flip(2))) for t in (p.q, p.k, p.v))
    p = Problem.of(*x, causal=p.causal)
    real = torch.tensor([draw(st.integers(1, p.q.shape[2])) for _ in range(p.q.shape[0])])[:, None, None]
    pos = p.q_pos.masked_fill(torch.arange(p.q.shape[2]) >= real, PAD)
    return replace(p, q_pos=pos, k_pos=pos, full=False)


@st.composite
def tokens(draw, problem, side):
    """A random choice on one side ("q" or "k"), ragged over heads and sequences; the last token is always in it."""
    n = problem.q.shape[2] if side == "q" else problem.k.shape[2]
    h = draw(st.sampled_from([1, problem.k.shape[1], problem.q.shape[1]]))
    chance = torch.rand(problem.q.shape[0], h, n, generator=torch.Generator().manual_seed(draw(SEEDS)))
    kept = chance < draw(st.sampled_from([0.2, 0.6, 1.0]))
    kept[..., -1] = True
    return Tokens.of(kept)


@st.composite
def blocks(draw, problem, size=None):
    """Random blocks in the grid of a problem; some query blocks may be left with none."""
    m, n = size or (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    h = draw(st.sampled_from([1, problem.k.shape[1], problem.q.shape[1]]))
    grid = (problem.q.shape[0], h, -(-problem.q.shape[2] // m), -(-problem.k.shape[2] // n))
    chance = torch.rand(*grid, generator=torch.Generator().manual_seed(draw(SEEDS)))
    return Blocks.of(chance < draw(st.sampled_from([0.2, 0.6, 1.0])), (m, n))


def with_blocks(stage, size):
    """The stage with blocks of so many tokens, if it has blocks: its own may be larger than any problem here."""
    if isinstance(stage, Union):
        return Union([with_blocks(pattern, size) for pattern in stage.patterns])
    return replace(stage, block_size=size) if hasattr(stage, "block_size") else stage


FILLS = st.sampled_from(
    [
        None,
        Zeros(),
        SlidingWindow(1, sinks=0),
        SlidingWindow(3, sinks=0),
        SlidingWindow(2, sinks=3),
        SlidingWindow(1, 1),
    ]
)


@st.composite
def whole_plans(draw, problem):
    """Plans with a fill, and sometimes last queries that see everything."""
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
