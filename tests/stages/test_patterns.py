"""Tests of what each stage always keeps, beyond the laws."""

import math
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import padded, problems

from sparsekit import (
    BlockThreshold,
    BlockTopK,
    Decompress,
    FlexPrefill,
    Pipeline,
    Plan,
    Problem,
    SlidingWindow,
    Streaming,
    TokenCoverage,
    Union,
)
from sparsekit.problem import PAD, to_heads

SIZES = st.integers(1, 5)


def own_and_first(p, m):
    """Return the pairs in the blocks of the queries' own keys, and in the first block, for each query block."""
    slot = torch.arange(p.k.shape[2])
    own = slot[-p.q.shape[2] :]
    block = torch.arange(p.q.shape[2]) // m
    forced = (slot[None] // m == 0) | torch.stack([(own[block == i, None] // m == slot // m).any(0) for i in block])
    return forced & p.visible()


@given(p=problems(causal=True), m=SIZES, keep=st.sampled_from([0.01, 0.5]))
def test_block_topk_keeps_the_first_block_the_diagonal_and_its_budget(p, m, keep):
    pairs = BlockTopK(keep, m)(p).pairs(p)
    assert (pairs | ~own_and_first(p, m)).all()
    own = torch.arange(p.k.shape[2])[-p.q.shape[2] :] // m  # each query's key block
    first, seen = own[::m], own[[*range(m - 1, len(own) - 1, m), -1]] + 1  # of each query block
    forced = seen - first + (first > 0)
    assert (BlockTopK(keep, m)(p).blocks.counts <= seen.mul(keep).ceil() + forced).all()


@given(p=problems(causal=True), m=SIZES, gamma=st.floats(0.01, 0.99), tau=st.sampled_from([0, 0.1, 1]))
def test_flex_prefill_keeps_the_first_block_and_the_diagonal(p, m, gamma, tau):
    pairs = FlexPrefill(gamma, tau, m)(p).pairs(p)
    assert (pairs | ~own_and_first(p, m)).all()


@given(p=problems(causal=True), m=SIZES)
def test_flex_prefill_keeps_more_for_a_larger_gamma(p, m):
    plans = [FlexPrefill(gamma, 0, m)(p).pairs(p) for gamma in (0.2, 0.5, 0.8, 1.0)]
    assert all((small <= large).all() for small, large in zip(plans, plans[1:], strict=False))


@given(p=problems(), sinks=st.integers(0, 6), window=st.integers(1, 9), m=SIZES)
def test_streaming_keeps_the_window_and_the_sinks_and_no_block_too_many(p, sinks, window, m):
    pairs = Streaming(sinks, window, m)(p).pairs(p)
    asked = SlidingWindow(window, sinks).pairs(p)
    assert (pairs | ~asked).all()
    tiles = lambda x: torch.nn.functional.max_pool2d(  # noqa: E731
        x.float(), m, ceil_mode=True
    )
    if p.causal:
        assert torch.equal(tiles(pairs), tiles(asked)), "only tiles with a pair that was asked for"


@given(p=problems(causal=True), m=SIZES)
def test_a_union_is_the_union(p, m):
    a, b = Streaming(1, 2, m), BlockTopK(0.4, m)
    assert torch.equal(Union([a, b])(p).pairs(p), a(p).pairs(p) | b(p).pairs(p))
    assert Union([a, FlexPrefill(gamma=1.0, block_size=m)])(p) == Plan()


@settings(max_examples=40)
@given(p=problems(), per=st.sampled_from(["head", "group", "layer"]), tau=st.sampled_from([0.1, 0.5, 1.0]))
def test_token_coverage_keeps_window_and_least_and_as_many_in_every_head(p, per, tau):
    if p.q.shape[2] > p.k.shape[2]:
        return
    plan = TokenCoverage(tau, voters=3, pool=3, min_tokens=4, sinks=2, per=per)(p)
    if plan.keys is None:
        assert p.k.shape[2] <= 4 + min(3, p.q.shape[2]) or plan == Plan()
        return
    kept = plan.keys.kept()
    assert kept.shape[1] == {"head": p.q.shape[1], "group": p.k.shape[1], "layer": 1}[per]
    w = min(3, p.q.shape[2])
    assert kept[..., -w:].all() and (kept.sum(-1) >= 4 + w).all()
    for t in (plan.queries, plan.keys):
        assert (t.kept().sum(-1) == t.kept().sum(-1)[:, :1]).all(), "every head keeps as many"
    assert torch.equal(plan.queries.kept(), kept[..., -p.q.shape[2] :])


@settings(max_examples=60)
@given(
    data=st.data(), per=st.sampled_from(["head", "group", "layer"]), tau=st.sampled_from([0.3, 0.9, 1.0]),
    sinks=st.integers(0, 5), window=st.integers(1, 3),
)  # fmt: skip
def test_no_query_loses_the_sinks(data, per, tau, sinks, window):
    """The stage shows them to kept queries, the fill to dropped ones, also in chunks and beside padding."""
    p = data.draw(problems(causal=True) | padded())
    assume(p.causal and p.q.shape[2] <= p.k.shape[2])
    stage = TokenCoverage(tau, voters=1, pool=1, min_tokens=0, sinks=sinks, per=per)
    plan = Pipeline([stage, Decompress(SlidingWindow(window, sinks=sinks))])(p)
    first = to_heads(p.k_pos < sinks, p.q.shape[1])[..., None, :] & p.visible()
    assert not (first & ~plan.pairs(p)).any()


@settings(max_examples=80)
@given(data=st.data(), m=st.integers(1, 5))
def test_no_query_loses_the_first_block(data, m):
    """Check every block stage, alone and after a token stage."""
    p = data.draw(problems(causal=True) | padded())
    assume(p.causal and p.q.shape[2] <= p.k.shape[2])
    flex = (FlexPrefill(gamma=0.3, tau=tau, block_size=m) for tau in (0.0, 1.0))
    some = TokenCoverage(0.9, voters=1, pool=1, min_tokens=0, sinks=m)
    for stage in (
        *flex,
        BlockTopK(0.01, m),
        Streaming(window=1, block_size=m),
        BlockThreshold(1.0, window=1, block_size=m),
    ):
        for pipeline in (Pipeline([stage]), Pipeline([some, stage, Decompress(SlidingWindow(1, sinks=m))])):
            first = to_heads(p.k_pos < m, p.q.shape[1])[..., None, :] & p.visible()
            assert not (first & ~pipeline(p).pairs(p)).any(), str(pipeline)


def test_sinks_are_seen_unless_someone_says_otherwise():
    assert SlidingWindow().sinks == TokenCoverage().sinks == Streaming().sinks // 8 == 16


def test_token_coverage_drops_what_nobody_looks_at():
    """Heads attend to different keys; each keeps its own, and the mass of the dropped ones stays near tau."""
    torch.manual_seed(0)
    n, d, heads = 400, 16, 2
    k = torch.randn(1, heads, n, d) * 0.1
    q = torch.randn(1, heads, n, d) * 0.1
    liked = [range(50, 90), range(200, 240)]
    for h in range(heads):
        k[0, h, liked[h], 0] = 12.0
        q[0, h, :, 0] = 4.0
    p = Problem.of(q, k, torch.randn(1, heads, n, d))
    plan = TokenCoverage(tau=0.02, voters=8, pool=1, min_tokens=0, sinks=2)(p)
    for h in range(heads):
        assert plan.keys.kept()[0, h, liked[h]].all()
    assert plan.kept(p) < 0.3


@settings(max_examples=60)
@given(data=st.data(), m=SIZES, alpha=st.sampled_from([0.01, 0.3, 1.0]), sinks=st.integers(0, 5), w=st.integers(1, 4))
@pytest.mark.parametrize("queries", ["each", "mean"])
def test_block_threshold_keeps_what_scores_near_the_best(queries, data, m, alpha, sinks, w):
    """Compare with the definition, one query block and group at a time, also in chunks and beside padding."""
    p = data.draw(problems() | padded())
    assume(p.q.shape[2] <= p.k.shape[2])
    H, G = p.q.shape[1], p.k.shape[1]
    mask = BlockThreshold(alpha, sinks, w, m, queries)(p).blocks.mask()
    always = to_heads(Streaming(sinks, w, m)(p).blocks.mask(), H)
    seen = p.visible()
    for b, g, i in product(range(p.q.shape[0]), range(G), range(mask.shape[2])):
        heads, rows = slice(g * H // G, (g + 1) * H // G), slice(i * m, (i + 1) * m)
        some = seen[b, heads, rows].any(0).any(0)
        open_ = torch.tensor([bool(some[j * m : (j + 1) * m].any()) for j in range(mask.shape[3])])
        asking = p.q[b, heads, rows]  # [heads, rows, D]
        if queries == "mean":
            asking = asking[:, p.q_pos[b, 0, rows] != PAD].mean(1, keepdim=True).nan_to_num(0.0)
        energy = torch.full((asking.shape[0] if queries == "mean" else 1, mask.shape[3]), -torch.inf, dtype=p.q.dtype)
        for j in range(mask.shape[3]):
            real = p.k_pos[b, 0, j * m : (j + 1) * m] != PAD
            if real.any():
                scores = asking @ p.k[b, g, j * m : (j + 1) * m][real].mean(0) * p.scale
                if queries == "mean" and open_[j]:
                    energy[:, j] = scores[:, 0]
                elif queries == "each":
                    energy[0, j] = scores[seen[b, heads, rows, j * m]].logsumexp(0)
        edge = energy.amax(1, keepdim=True) + math.log(alpha)  # the best of the group, or of each head
        sure, close = open_ & (energy > edge + 1e-9).any(0), ((energy - edge).abs() <= 1e-9).any(0)
        forced = always[b, heads, i].any(0)
        assert torch.equal((mask[b, g, i] | close), (sure | forced | close))


def test_a_query_does_not_score_a_key_block_that_begins_after_it():
    """The last key block begins at 12. The query at 10 would score it highest, but must not: it does not see it."""
    q, k = torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 16, 4)
    k[..., :4, 0] = k[..., 12:, 3] = 2.0
    q[..., 0], q[..., 0, 3] = 3.0, 30.0
    kept = BlockThreshold(0.1, 0, 1, 4)(Problem.of(q, k, k)).blocks.mask()[0, 0, 0]
    assert kept.tolist() == [True, False, True, True], "the first scores best, the last two are near"


def test_one_loud_query_decides_alone_unless_their_mean_is_taken():
    """All queries of the last block look for key block 2, but one looks for block 1, with much larger scores."""
    L, m = 512, 64
    q, k = torch.zeros(1, 1, L, 64), torch.zeros(1, 1, L, 64)
    k[..., 64:128, 0] = k[..., 128:192, 1] = 8.0
    q[..., -m:, 1] = 8.0
    q[..., -1, 0] = 64.0
    p = Problem.of(q, k, k)
    each, mean = (BlockThreshold(0.1, 0, 1, m, queries)(p).blocks.mask()[0, 0, -1] for queries in ("each", "mean"))
    assert each.nonzero().flatten().tolist() == [1, 7]
    assert mean.nonzero().flatten().tolist() == [2, 7]


def test_flex_prefill_finds_verticals_and_slashes():
    """The test plants two structures: a key block that all queries attend to, and a distance at which they all attend.

    As published, the budget includes the first block and the diagonal, so a budget of one block would find neither.
    """
    torch.manual_seed(0)
    n, d, m = 256, 64, 16
    q, k = torch.randn(1, 2, n, d) * 0.05, torch.randn(1, 2, n, d) * 0.05
    k[0, 0, 100:104, 0], q[0, 0, :, 0] = 30.0, 30.0
    code = torch.randn(n, d - 1) * 3  # head 1: the query at t matches the key at t - 40
    k[0, 1, :, 1:] = code
    q[0, 1, 40:, 1:] = code[:-40]
    p = Problem.of(q, k, torch.randn(1, 2, n, d))
    plan = FlexPrefill(gamma=0.9, tau=0, block_size=m, min_budget=2 * m)(p)
    pairs = plan.pairs(p)
    assert pairs[0, 0, 112:, 96:112].all(), "the vertical"
    assert pairs[0, 1, torch.arange(64, n), torch.arange(64, n) - 40].float().mean() > 0.4, "the slash"
    assert plan.density(p) < 0.6


@pytest.mark.parametrize("stage", [FlexPrefill(block_size=2)])
def test_flex_prefill_refuses_what_is_not_causal(stage):
    x = torch.randn(1, 1, 8, 4)
    with pytest.raises(ValueError, match="not causal.*BlockTopK"):
        Pipeline([stage])(x, x, x, causal=False)


@given(p=problems(square=True, causal=True), gamma=st.floats(0.1, 0.95))
def test_flex_prefill_takes_the_entry_that_crosses_gamma_and_rounds_up(p, gamma):
    """With blocks of one token the probe is the last query, so its row can be computed by hand."""
    K = p.k.shape[2]
    assume(K > 2)
    k = p.k.repeat_interleave(p.q.shape[1] // p.k.shape[1], 1)
    probability = (p.q[:, :, -1:] @ k.mT * p.scale).softmax(-1).squeeze(2)
    row = FlexPrefill(gamma, 0.0, block_size=1)(p).pairs(p)[:, :, -1]
    for b, h in torch.cartesian_prod(torch.arange(row.shape[0]), torch.arange(row.shape[1])):
        best = probability[b, h].argsort(descending=True)
        until = int((probability[b, h][best].cumsum(-1) <= gamma).sum()) + 1  # the crossing entry among them
        n = min(until + 1, K)  # as published: one block more than the division gives
        first, last = [0], [K - 1]
        keys = set((first + [int(x) for x in best if x != 0])[:n])
        keys |= set((last + [int(x) for x in best if x != K - 1])[:n])
        assert set(row[b, h].nonzero().flatten().tolist()) == keys
