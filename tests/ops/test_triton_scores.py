"""Tests of the scoring kernels in Triton's interpreter, or on a GPU if there is one, and compiled for several GPUs."""

import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from closeness import no_worse
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import SEEDS, blocks, named, padded, problems, randn, tokens, windowed
from test_triton import not_interpreted, poisoned, poisoned_room

import sparsekit as sk
from sparsekit import Plan, Problem, dispatch
from sparsekit.problem import PAD, to_heads
from sparsekit.stages import block_threshold, block_topk, flex_prefill, token_coverage

pytest.importorskip("triton", reason="the kernels are Triton's, and it is only made for Linux")
WHERE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(WHERE == "cuda", reason="float64, which only the interpreter takes")
close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)  # noqa: E731


def plain(op, *args):
    return dispatch.run(op, WHERE, *args, backend="reference")


def fast(op, *args):
    """Run the op in Triton, in memory full of NaN or the largest integer: entries that it does not write show."""
    with poisoned_room():
        return dispatch.run(op, WHERE, *args, backend="triton")


# --- window_scores ------------------------------------------------------------------------------------------------


@interpreted
@settings(max_examples=14)
@given(data=st.data(), window=st.sampled_from([1, 2, 3, 7, 20, 40]))
def test_window_scores_are_the_definition(data, window):
    """A plan's tokens make problems with positions per head and padding."""
    p = data.draw(problems(most=12) if data.draw(st.booleans()) else windowed(most=12))
    if data.draw(st.booleans()):
        keys = data.draw(tokens(p, "k"))
        queries = keys if p.q.shape[2] == p.k.shape[2] else data.draw(tokens(p, "q"))
        p = Plan(queries, keys).compress(p)
    if data.draw(st.booleans()):
        p = replace(p, scale=-p.scale)
    for mine, theirs in zip(
        fast("window_scores", p, window, True), plain("window_scores", p, window, True), strict=True
    ):
        close(mine, theirs)
    (columns,) = fast("window_scores", p, window)
    close(columns, plain("window_scores", p, window)[0])


HALF, SINGLE = torch.float16, torch.float32


@pytest.mark.parametrize(
    "dtype,Q,K,D,window,causal",
    [
        (HALF, 261, 261, 64, 48, True),
        (HALF, 261, 261, 64, 20, False),
        (HALF, 130, 261, 40, 128, True),
        (HALF, 127, 127, 24, 200, True),
        (HALF, 129, 129, 256, 1, True),
        (SINGLE, 129, 129, 64, 48, True),
        (SINGLE, 1, 127, 40, 20, False),
        (SINGLE, 75, 90, 24, 70, True),
    ],
)
def test_the_error_of_window_scores_is_that_of_plain_torch(dtype, Q, K, D, window, causal):
    """Surround the inputs by NaN, which shows in the output of a kernel that reads beyond their ends."""
    q, k = (
        poisoned(randn(i, 1, *s, dtype=torch.float32).to(WHERE, dtype)) for i, s in enumerate([(4, Q, D), (2, K, D)])
    )
    p = Problem.of(q, k, k, causal)
    wide = Problem.of(q.double(), k.double(), k.double(), causal)
    mine, columns = fast("window_scores", p, window, True), fast("window_scores", p, window)[0]
    theirs, truth = plain("window_scores", p, window, True), plain("window_scores", wide, window, True)
    for a, b, c in ((mine[0], theirs[0], truth[0]), (mine[1], theirs[1], truth[1]), (columns, theirs[0], truth[0])):
        assert a.dtype == torch.float32
        no_worse(a, b, c, dtype)


@pytest.mark.parametrize("padded", [0, 70])
@pytest.mark.parametrize("dtype,D,probe,window", [(HALF, 64, 48, 100), (SINGLE, 24, 20, 33), (HALF, 40, 20, 1)])
def test_keys_before_a_window_get_nothing_and_cost_no_score(dtype, D, probe, window, padded):
    """All scores are far below zero, so a skipped tile of keys must not count as a largest score of 0."""
    q, k = (randn(i, 1, *s, dtype=torch.float32).to(WHERE, dtype) for i, s in enumerate([(4, 261, D), (2, 261, D)]))
    q[..., 0], k[..., 0] = 40.0, -40.0
    p = Problem.of(q, k, k, sliding_window=window)
    if padded:
        pos = torch.where(p.q_pos < 261 - padded, p.q_pos, PAD)
        p = replace(p, q_pos=pos, k_pos=pos, full=False)
    wide = replace(p, q=q.double(), k=k.double(), v=k.double())
    k[:, :, : 261 - padded - probe - window + 1] = math.nan
    mine, theirs, truth = (
        fast("window_scores", p, probe, True),
        plain("window_scores", p, probe, True),
        plain("window_scores", wide, probe, True),
    )
    for a, b, c in zip(mine, theirs, truth, strict=True):
        no_worse(a, b, c, dtype)
    assert mine.isfinite().all() and (mine[1, ..., window:] == 0).all()


def test_window_scores_read_any_layout():
    rows = lambda seed, *shape: randn(seed, *shape, dtype=torch.float32).to(WHERE)  # noqa: E731
    q, k = rows(0, 2, 70, 4, 24).transpose(1, 2), rows(1, 2, 1, 24, 70).transpose(2, 3).expand(2, 2, 70, 24)
    p = Problem.of(q, k, k)
    dense = Problem.of(q.contiguous(), k.contiguous(), k.contiguous())
    for mine, theirs in zip(fast("window_scores", p, 48, True), fast("window_scores", dense, 48, True), strict=True):
        assert torch.equal(mine, theirs)


@interpreted
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side,at", [("q", (0, 1, 37)), ("q", (0, 1, 20)), ("k", (0, 0, 3)), ("k", (0, 0, 38))])
def test_rows_with_nan_give_nothing_and_the_others_what_they_gave(bad, side, at):
    p = Problem.of(randn(0, 1, 2, 40, 8), randn(1, 1, 1, 40, 8), randn(2, 1, 1, 40, 8))
    getattr(p, side)[at] = bad
    mine, theirs = (run("window_scores", p, 7, True) for run in (fast, plain))
    close(mine, theirs)


# --- topk_mask, select_tokens, coverage_mask ----------------------------------------------------------------------


@st.composite
def scores(draw):
    """Draw rows [1, h, n] with ties, zeros of both signs, infinities and NaN."""
    h, n = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 5, 127, 129]))
    x = randn(draw(SEEDS), 1, h, n)
    x = x if draw(st.booleans()) else x.mul(draw(st.sampled_from([0.1, 1.0, 10.0]))).round()
    odd = randn(draw(SEEDS), 1, h, n) > 1.5
    x = x.masked_fill(odd, draw(st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan])))
    return x.to(WHERE, torch.float64 if WHERE == "cpu" and draw(st.booleans()) else torch.float32)


# the longest row that stays in registers; None: programs share rows
held_or_not = pytest.mark.parametrize("held", [2**15, 0, None])


@contextmanager
def shared(tile=(2, 16)):
    """Let several programs share even a short row inside the context; each reads a tile of it in a step."""
    small = dict(LONG=4, SPLIT=4, SHARE=16, SHARES=4, TILE=tile)
    with mock.patch.multiple("sparsekit_kernels.triton.coverage_mask", **small):
        yield


@contextmanager
def rows_held(held, tile=(2, 16)):
    """Inside, a program holds a row of at most so many entries, and several write it; None: several search it, too."""
    with mock.patch("sparsekit_kernels.triton.select_tokens.SHARE", 16):
        with shared(tile) if held is None else mock.patch("sparsekit_kernels.triton.topk_mask.HELD", held):
            yield


@held_or_not
@settings(max_examples=14)
@given(data=st.data())
def test_the_largest_are_the_definition(held, data):
    x = data.draw(scores())
    keep = torch.randint(0, x.shape[2] + 2, (1, data.draw(st.sampled_from([1, x.shape[1]]))), device=WHERE)
    with rows_held(held):
        assert torch.equal(fast("topk_mask", x, keep), plain("topk_mask", x, keep))
        mine, theirs = fast("select_tokens", x, keep), plain("select_tokens", x, keep)
    assert torch.equal(mine.idx, theirs.idx) and mine.idx.dtype == torch.int32
    assert (mine.n, mine.full) == (theirs.n, theirs.full)


def test_zeros_of_both_signs_are_equal():
    x, keep = torch.tensor([[[-0.0, 0.0, -0.0, 0.0, 1.0]]], device=WHERE), torch.tensor([[3]], device=WHERE)
    assert fast("topk_mask", x, keep).tolist() == [[[True, True, False, False, True]]]
    assert fast("select_tokens", x, keep).idx[..., :3].tolist() == [[[0, 1, 4]]]  # a GPU has room for all


@settings(max_examples=20)
@given(data=st.data(), largest=st.booleans())
def test_the_entries_within_a_mass_are_the_definition(data, largest):
    """Sums of whole numbers are exact: what fits is no matter of rounding."""
    x = data.draw(scores()).abs()
    if data.draw(st.booleans()):
        x = x.round()
    else:
        assume(x.isfinite().all())
        x = x.double().to(x.dtype)
    total = torch.nan_to_num(x, 0.0, 0.0, 0.0).sum(-1)
    part = data.draw(st.sampled_from([-1.0, 0.0, 0.2, 0.5, 0.9, 1.0, 2.0]))
    mass = (total * part).round() + (0.0 if torch.equal(x, x.round()) else 0.001)
    mask = plain("coverage_mask", x, mass, largest)
    assert torch.equal(fast("coverage_mask", x, mass, largest), mask)
    assert torch.equal(fast("coverage_count", x, mass, largest), mask.sum(-1))
    with shared():
        assert torch.equal(fast("coverage_mask", x, mass, largest), mask)
        assert torch.equal(fast("coverage_count", x, mass, largest), mask.sum(-1))


@held_or_not
@pytest.mark.parametrize("layout,steps", [("rows", 2), ("columns", 0), ("one row for all", 0)])
def test_long_rows_and_rows_in_any_layout(layout, steps, held):
    """Rows have more entries than a program reads at once, and ties in both parts. The layout changes no result."""
    from sparsekit_kernels.triton.topk_mask import STEP

    n = steps * STEP + 300
    x = randn(0, 2, n, dtype=torch.float32).mul(4).round().abs().to(WHERE)
    x = {"rows": x, "columns": x.T.contiguous().T, "one row for all": x[:1].expand(2, -1)}[layout]
    keep, most = torch.tensor([n - 100, n // 3], device=WHERE), torch.tensor(n)
    with rows_held(held, (4, 128)):
        assert torch.equal(fast("topk_mask", x, keep), plain("topk_mask", x, keep))
        mine, theirs = (run("select_tokens", x[:, None], keep[:, None]) for run in (fast, plain))
        assert torch.equal(mine.idx, theirs.idx)
        mine, theirs = (run("token_budget", x, 0.75, most) for run in (fast, plain))
        assert torch.equal(mine, theirs) and 0 < mine.min()
    for largest in (True, False):
        mass = x.sum(-1) * 0.75 // 1
        mine, theirs = (run("coverage_mask", x, mass, largest) for run in (fast, plain))
        assert torch.equal(mine, theirs) and 0 < mine.sum() < mine.numel()
        assert torch.equal(fast("coverage_count", x, mass, largest), mine.sum(-1))


# --- token_votes, token_budget ------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(data=st.data())
def test_votes_are_the_definition(data):
    """Lengths are per sequence, per head, or one number. A NaN or inf reaches only its neighbours' averages."""
    x = data.draw(scores()).abs().view(1, -1, 1).expand(2, -1, 6).transpose(1, 2)  # [2, 6, K], not contiguous
    K, h = x.shape[2], data.draw(st.sampled_from([0, 1, 3, 6]))
    scored = torch.randint(0, K + 1, (2, h, 1)) if h else torch.tensor(K - K // 3)
    real = scored + torch.randint(0, K + 1, scored.shape).minimum(K - scored)
    x, pool = x * torch.arange(1, 7, device=WHERE)[:, None], data.draw(st.sampled_from([1, 3, 7]))
    lengths, sinks = [n.to(WHERE) if h else n for n in (scored, real)], data.draw(st.sampled_from([0, 1, 5]))
    for mine, theirs in zip(*(run("token_votes", x, *lengths, pool, sinks) for run in (fast, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@held_or_not
@settings(max_examples=20)
@given(data=st.data(), tau=st.sampled_from([0.0, 0.125, 0.5, 1.0]))
def test_the_budget_is_the_definition(held, data, tau):
    """Sums of whole numbers are exact: what fits is no matter of rounding."""
    x = data.draw(scores()).abs().round()
    x = torch.nan_to_num(x[0] if data.draw(st.booleans()) else x[0].T.contiguous().T, math.nan, math.inf)
    some = data.draw(st.booleans())
    most = torch.randint(0, x.shape[1] + 1, x.shape[:1], device=WHERE) if some else torch.tensor(x.shape[1] // 2)
    with rows_held(held):
        mine, theirs = (run("token_budget", x, tau, most) for run in (fast, plain))
    assert torch.equal(mine, theirs) and mine.dtype == torch.int64


@held_or_not
@pytest.mark.parametrize("votes", [[0.0, 0.0], [1e-45] * 3, [1e30, 1e-30, 0.0, 1e30], [4.0], [math.inf] * 2, [8.0] * 9])
def test_the_budget_of_odd_rows(held, votes):
    """Rows of equal votes, zeros, and the smallest and largest numbers reach both ends of the search."""
    x = torch.tensor([votes], device=WHERE)
    for tau in (0.0, 0.25, 0.5, 1.0):
        with rows_held(held):
            mine, theirs = (run("token_budget", x, tau, torch.tensor(99)) for run in (fast, plain))
        assert torch.equal(mine, theirs), tau


# --- query_aware --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [1, 2, 4])
@settings(max_examples=8)
@given(seed=SEEDS, data=st.data())
def test_query_aware_heads_are_the_definition(h, seed, data):
    """Estimates are near the probe's attention or far from it; rows are ragged, heads share means, one entry is NaN."""
    H, J, D = 4, data.draw(st.sampled_from([1, 3, 70])), data.draw(st.sampled_from([5, 16, 130]))
    per_head = data.draw(st.booleans())
    probe = randn(seed, 2, H, D, dtype=torch.float32).to(WHERE)
    means = randn(seed + 1, 2, h, J, D, dtype=torch.float32).to(WHERE)
    blocks = torch.randint(0, J + 1, (2, H, 1)) if per_head else torch.tensor(J)
    blocks = blocks.to(WHERE) if per_head else blocks
    seen = (means.repeat_interleave(H // h, 1) @ probe[..., None]).squeeze(3) * 0.3
    pooled = seen + randn(seed + 2, 2, H, J, dtype=torch.float32).to(WHERE) * data.draw(st.sampled_from([0, 1, 9]))
    pooled = pooled.masked_fill(torch.arange(J, device=WHERE) >= blocks, -torch.inf).softmax(-1).nan_to_num(0.0)
    if data.draw(st.booleans()):
        pooled[0, 0, 0] = math.nan
    for tau in (0.05, 0.1, 0.3):
        mine, theirs = (run("query_aware", probe, means, pooled, blocks, 0.3, tau) for run in (fast, plain))
        assert torch.equal(mine, theirs)


# --- block_means, block_map, vertical_slash_blocks, seen_blocks ---------------------------------------------------


@interpreted
@settings(max_examples=25)
@given(data=st.data(), size=st.integers(1, 40))
def test_block_means_are_the_definition(data, size):
    p = data.draw(problems())
    p = Plan(data.draw(tokens(p, "q")), data.draw(tokens(p, "k"))).compress(p)
    for x, pos in ((p.q, p.q_pos), (p.k, p.k_pos)):
        x = x.masked_fill((pos == PAD)[:, :1, :, None].expand_as(x), math.nan) if pos.shape[1] == 1 else x
        x = x.mT.contiguous().mT if size % 2 else x
        close(fast("block_means", x, pos, size), plain("block_means", x, pos, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("n,D,size", [(389, 64, 128), (1, 24, 128), (127, 300, 32)])
def test_the_error_of_block_means_is_that_of_plain_torch(dtype, n, D, size):
    x = poisoned(randn(0, 2, 2, n, D, dtype=torch.float32).to(WHERE, dtype))
    pos = torch.arange(n, dtype=torch.int32, device=WHERE).expand(2, 1, n)
    mine, theirs, truth = fast("block_means", x, pos, size), plain("block_means", x, pos, size), x.double()
    assert mine.dtype == torch.float32
    no_worse(mine, theirs, plain("block_means", truth, pos, size), torch.float32)


@interpreted
@settings(max_examples=40)
@given(data=st.data(), m=st.sampled_from([1, 3, 4]), gamma=st.sampled_from([0.3137, 0.7071, 0.9531]))
def test_a_block_map_is_the_definition(data, m, gamma):
    """The map has rows of padding, rows before a window, blocks that are no numbers, and heads that need none."""
    p = data.draw(problems(causal=True, most=14) | windowed(most=14) | windowed(most=14) | padded())
    assume(p.causal and p.q.shape[2] <= p.k.shape[2])
    bad = data.draw(st.sampled_from([None, None, math.nan, math.inf]))
    if bad is not None:
        p.k.view(-1)[data.draw(st.integers(0, p.k.numel() - 1))] = bad
    (B, H), means = p.q.shape[:2], plain("block_means", p.k, p.k_pos, m)
    last = to_heads(p.block_range(m)[1], H) - 1
    first = p.start()[:, :, ::m] // m if p.sliding_window is not None else None
    heads = randn(data.draw(SEEDS), B, H) > data.draw(st.sampled_from([-9.0, 0.0]))
    given_ = p.q, p.q_pos, means, heads, first, last, p.scale, gamma, m
    with mock.patch("sparsekit_kernels.triton.block_map.KEYS", 4):  # a program reads the key blocks in several steps
        mine, theirs = (run("block_map", *given_) for run in (fast, plain))
        assert torch.equal(mine, theirs)
        assert not mine[~heads].any()
        with shared():
            assert torch.equal(fast("block_map", *given_), theirs)


@interpreted
def test_a_block_map_of_scores_that_rise_is_the_definition():
    """Check a sum of exponentials over several steps: each step has a larger score than those before."""
    key = torch.arange(16.0).double()[:, None].expand(1, 1, 16, 4) / 8
    p = Problem.of(torch.ones(1, 1, 16, 4).double(), key, key)
    last, heads = torch.arange(16).expand(1, 1, 16), torch.ones(1, 1, dtype=torch.bool)
    given_ = p.q, p.q_pos, p.k, heads, None, last, p.scale, 0.7071, 1
    with mock.patch("sparsekit_kernels.triton.block_map.KEYS", 4):
        assert torch.equal(fast("block_map", *given_), plain("block_map", *given_))


@settings(max_examples=30)
@given(data=st.data(), m=st.sampled_from([1, 3, 4]))
def test_vertical_slash_blocks_are_the_definition(data, m):
    """Chunks start inside a block, rows have padding, and some lists are empty or full."""
    K = data.draw(st.sampled_from([1, 7, 11, 16]))
    n_k = torch.tensor([[[K]], [[data.draw(st.integers(1, K))]]])
    n_q = torch.tensor([[[data.draw(st.integers(1, int(n)))]] for n in n_k])
    start = torch.arange(-(-int(n_q.max()) // m)) * m
    first = (n_k - n_q + start) // m
    last = ((n_k - n_q + torch.minimum(start + m, n_q) - 1) // m).masked_fill(start >= n_q, -1)
    first, last = (x.expand(2, 2, -1).to(WHERE) for x in (first, last))
    J, chance = -(-K // m), data.draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    draw = lambda *shape: (randn(data.draw(SEEDS), 2, 2, *shape).sigmoid() < chance).to(WHERE)  # noqa: E731
    extra = draw(len(start), J) if data.draw(st.booleans()) else None
    pattern = (draw(J), draw(J), first, last, extra, (m, m))
    mine, theirs = (run("vertical_slash_blocks", *pattern) for run in (fast, plain))
    assert torch.equal(mine.mask(), theirs.mask()) and torch.equal(mine.counts, theirs.counts)
    assert (mine.size, mine.n) == (theirs.size, theirs.n)
    with mock.patch("sparsekit_kernels.triton.vertical_slash_blocks.SMALL", 0):  # then lists are as short as possible
        assert torch.equal(fast("vertical_slash_blocks", *pattern).indices, theirs.indices)


@pytest.mark.parametrize("n_k,n_q,m", [(16, 7, 4), (11, 4, 3)])
def test_a_chunk_within_a_block_takes_the_slashes_of_both_its_key_blocks(n_k, n_q, m):
    start = torch.arange(-(-n_q // m), device=WHERE) * m
    first = ((n_k - n_q + start) // m).expand(1, 2, -1)
    last = ((n_k - n_q + (start + m).clamp(max=n_q) - 1) // m).expand(1, 2, -1)
    slashes = torch.zeros(1, 2, -(-n_k // m), dtype=torch.bool, device=WHERE)
    slashes[0, 0, 0] = slashes[0, 1, 2] = True
    pattern = (torch.zeros_like(slashes), slashes, first, last, None, (m, m))
    mine, theirs = (run("vertical_slash_blocks", *pattern) for run in (fast, plain))
    assert torch.equal(mine.counts, theirs.counts) and torch.equal(mine.mask(), theirs.mask())


@interpreted
@settings(max_examples=40)
@given(
    data=st.data(), m=st.sampled_from([1, 3, 4]), alpha=st.sampled_from([0.05, 0.6, 1.0]), sinks=st.integers(0, 5),
    near=st.sampled_from([1, 4, 2**40]),
)  # fmt: skip
def test_threshold_blocks_are_the_definition(data, m, alpha, sinks, near):
    """Problems have chunks, windows, padding, positions per head and NaN; lists have room for all or just enough."""
    p = data.draw(problems(causal=True, most=14) | windowed(most=14) | padded())
    assume(p.causal and p.q.shape[2] <= p.k.shape[2])
    if data.draw(st.booleans()):
        keys = data.draw(tokens(p, "k"))
        p = Plan(keys if p.q.shape[2] == p.k.shape[2] else None, keys).compress(p)
    if data.draw(st.booleans()):
        p = replace(p, scale=-p.scale)
    bad = data.draw(st.sampled_from([None, None, math.nan, math.inf]))
    if bad is not None:
        p.k.view(-1)[data.draw(st.integers(0, p.k.numel() - 1))] = bad
    assume(p.q_pos.shape[1] <= max(p.k.shape[1], p.k_pos.shape[1]))
    mine, theirs = (run("threshold_blocks", p, alpha, sinks, near, m) for run in (fast, plain))
    assert torch.equal(mine.mask(), theirs.mask()) and torch.equal(mine.counts, theirs.counts)
    assert mine.indices.dtype == mine.counts.dtype == torch.int32 and mine.n == theirs.n
    with mock.patch("sparsekit_kernels.triton.threshold_blocks.SMALL", 0):
        assert torch.equal(fast("threshold_blocks", p, alpha, sinks, near, m).indices, theirs.indices)


def test_a_key_block_that_is_no_number_scores_as_zero_does():
    q, k = torch.zeros(1, 2, 24, 8), torch.zeros(1, 1, 24, 8)
    k[..., 5, 0], k[..., 13, 1] = math.nan, math.inf
    p = Problem.of(*(x.to(WHERE) for x in (q, k, k)))
    if reason := sk.why_not("triton", "threshold_blocks", p, 1.0, 0, 1, 4):
        pytest.skip(reason)
    mine, theirs = (run("threshold_blocks", p, 1.0, 0, 1, 4).mask() for run in (fast, plain))
    assert torch.equal(mine, theirs) and mine[0, 0].tril().sum() == mine.sum() == 21, "all score alike"


@settings(max_examples=25)
@given(data=st.data())
def test_what_is_seen_of_lists_is_the_definition(data):
    p = data.draw(problems())  # only its positions matter
    p = Plan(data.draw(tokens(p, "q")), data.draw(tokens(p, "k"))).compress(p)
    lists = data.draw(blocks(p))
    where = sk.Blocks(lists.counts.to(WHERE), lists.indices.to(WHERE), lists.size, lists.n)
    for mine, theirs in zip(*(run("seen_blocks", where, p.reach().to(WHERE)) for run in (fast, plain)), strict=True):
        assert torch.equal(mine, theirs) and mine.dtype == torch.int32


# --- the stages that use them -------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    "stage", **named([s for m in (block_threshold, block_topk, flex_prefill, token_coverage) for s in m.EXAMPLES])
)
@settings(max_examples=4)
@given(p=st.one_of(problems(causal=True, most=9), windowed(most=9)))
def test_a_stage_decides_the_same(stage, p):
    with mock.patch.dict(dispatch.AUTO, cpu=("triton", "reference")), poisoned_room():
        mine = stage(p)
    theirs = stage(p)
    assert torch.equal(mine.pairs(p), theirs.pairs(p))


def test_it_says_why_not():
    x = randn(0, 1, 1, 8, 300, dtype=torch.float32).to(WHERE)
    assert "300 is larger than 256" in sk.why_not("triton", "window_scores", Problem.of(x, x, x), 4)
    if WHERE == "cpu":
        half = x[..., :8].bfloat16()
        assert "bfloat16" in sk.why_not("triton", "window_scores", Problem.of(half, half, half), 4, True)
        assert "bfloat16" in sk.why_not("triton", "topk_mask", half, torch.ones(1, 1, 8, dtype=torch.int32))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_it_compiles_without_spills(target):
    """Compile in a process of its own, in which kernels are not interpreted; it needs no GPU."""
    script = Path(__file__).with_name("compile_triton_scores.py")
    ran = subprocess.run([sys.executable, script, target], capture_output=True, text=True, env=not_interpreted())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("spills 0 ") == ran.stdout.count("fits") == len(ran.stdout.splitlines()) >= 40, ran.stdout
