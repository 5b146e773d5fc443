"""Block lists by the means of blocks: each program has 16 query blocks, and reads the key blocks that they see.

One kernel does so for each head and finds the threshold: the score that is near enough to its best. Another does so
for each group and writes the lists. Both compute scores in the same way, so that the best one always passes. Small
lists are as wide as the grid. For larger ones a launch counts first, and the host waits for the longest list.
"""

import math

import torch
import triton
import triton.language as tl

from sparsekit.plan import Blocks
from sparsekit.problem import PAD, Problem

from . import why_not_here
from .block_means import block_means

SMALL = 2**26  # entries of all lists together, 256 MiB: up to this size the host does not wait
ROWS = 16  # query blocks of a program: the fewest that tl.dot supports
KEYS = 64  # key blocks of a step
DIMS = 16  # entries of a mean that are multiplied at a time: with more, registers spill
FAR = 2**30  # tokens: no problem is that long
NOBODY = tl.constexpr(PAD)


def why_not(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> str | None:
    p, groups = problem, max(problem.k.shape[1], problem.k_pos.shape[1])
    if not p.causal:
        return "the problem is not causal: take reference"
    if p.q_pos.shape[1] > groups:
        return "the heads of a group have queries at different positions: take reference"
    return why_not_here(p.q)


def threshold_blocks(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> Blocks:
    p, m = problem, size
    q, k = block_means(p.q, p.q_pos, m), block_means(p.k, p.k_pos, m)
    (B, H, I, D), (G, J) = q.shape, k.shape[1:3]
    reach = p.reach()
    start = p.start() if p.sliding_window is not None else None
    strides = *reach.stride(), *(start.stride() if start is not None else (0, 0, 0))
    seen = reach, start, *strides, p.q.shape[2], m, min(near, FAR)
    constants = dict(M=ROWS, N=KEYS, S=min(triton.next_power_of_2(m), 128), D_STEP=DIMS)
    constants |= dict(WIDE=tl.float64 if q.dtype == torch.float64 else tl.float32)
    programs = -(-I // ROWS)
    edges = q.new_empty(B, H, I)
    heads = H, H // G, H // reach.shape[1], H // (start.shape[1] if start is not None else 1)
    _edges[(programs, B * H)](q, k, edges, *seen, *heads, I, J, D, p.scale, math.log(alpha), **constants)
    counts = torch.empty(B, G, I, dtype=torch.int32, device=q.device)
    lists = q, k, edges, counts
    groups = G, H // G, max(G // reach.shape[1], 1), max(G // (start.shape[1] if start is not None else 1), 1)
    rest = *seen, *groups, I, J, D, p.scale, -(-min(sinks, FAR) // m)
    width = J
    if B * G * I * J > SMALL:
        _lists[(programs, B * G)](*lists, counts, *rest, 0, WRITE=False, **constants)
        width = max(int(counts.max()), 1)  # the one host synchronisation of a choice
    indices = counts.new_empty(B, G, I, width)
    _lists[(programs, B * G)](*lists, indices, *rest, width, WRITE=True, **constants)
    return Blocks(counts, indices, (m, m), J)


@triton.jit
def _bounds(
    reach, start, reach_l, start_l, rows, Q, m, near, M: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Return query blocks' key blocks: some query sees [begin, end); those from `own` on are near a query."""
    least, most = tl.full([M], NOBODY, tl.int32), tl.zeros([M], tl.int32)
    for first in range(0, m, S):
        slot = first + tl.arange(0, S)
        row = rows[:, None] * m + slot[None, :]
        inside = (slot < m)[None, :] & (row < Q)
        seen = tl.load(reach + row.to(tl.int64) * reach_l, mask=inside, other=0).to(tl.int32)
        most = tl.maximum(most, tl.max(seen, 1))
        least = tl.minimum(least, tl.min(tl.where(seen > 0, seen, NOBODY), 1))
    begin = tl.zeros([M], tl.int32)
    if start is not None:
        row = rows * m
        begin = tl.load(start + row.to(tl.int64) * start_l, mask=row < Q, other=0).to(tl.int32) // m
    return begin, (most + m - 1) // m, tl.maximum(tl.minimum(least, most) - near, 0) // m


@triton.jit
def _scores(q, k, rows, keys, I, J, D, scale, D_STEP: tl.constexpr, WIDE: tl.constexpr):
    """Compute mean query . mean key * scale, [M, N]; NaN and inf become 0."""
    scores = tl.zeros([rows.shape[0], keys.shape[0]], WIDE)
    for first in range(0, D, D_STEP):
        d = first + tl.arange(0, D_STEP)
        x = tl.load(q + rows[:, None] * D + d[None, :], mask=(rows < I)[:, None] & (d < D)[None, :], other=0.0)
        y = tl.load(k + keys[:, None] * D + d[None, :], mask=(keys < J)[:, None] & (d < D)[None, :], other=0.0)
        scores += tl.dot(x, tl.trans(y), input_precision="ieee", out_dtype=WIDE)
    scores *= scale
    return tl.where(tl.abs(scores) < float("inf"), scores, 0.0)  # `scores - scores == 0` may be an fma, and not zero


@triton.jit
def _edges(
    q, k, edges, reach, start, reach_b, reach_h, reach_l, start_b, start_h, start_l, Q, m, near,
    heads, per_key, per_reach, per_start, I, J, D, scale, margin,
    M: tl.constexpr, N: tl.constexpr, S: tl.constexpr, D_STEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1).to(tl.int64)
    b, head = line // heads, line % heads
    rows = tl.program_id(0) * M + tl.arange(0, M)
    reach += b * reach_b + head // per_reach * reach_h
    if start is not None:
        start += b * start_b + head // per_start * start_h
    begin, end, _ = _bounds(reach, start, reach_l, start_l, rows, Q, m, near, M, S)
    q += line * I * D
    k += line // per_key * J * D
    top = tl.full([M], float("-inf"), WIDE)
    for first in range(tl.min(begin, 0) // N * N, tl.max(end, 0), N):
        keys = first + tl.arange(0, N)
        seen = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
        scores = _scores(q, k, rows, keys, I, J, D, scale, D_STEP, WIDE)
        top = tl.maximum(top, tl.max(tl.where(seen, scores, float("-inf")), 1))
    tl.store(edges + line * I + rows, top + margin, mask=rows < I)


@triton.jit
def _lists(
    q, k, edges, counts, indices, reach, start, reach_b, reach_h, reach_l, start_b, start_h, start_l, Q, m, near,
    groups, per_key, per_reach, per_start, I, J, D, scale, sinks, width, WRITE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, S: tl.constexpr, D_STEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1).to(tl.int64)
    b, group = line // groups, line % groups
    rows = tl.program_id(0) * M + tl.arange(0, M)
    reach += b * reach_b + group // per_reach * reach_h
    if start is not None:
        start += b * start_b + group // per_start * start_h
    begin, end, own = _bounds(reach, start, reach_l, start_l, rows, Q, m, near, M, S)
    k += line * J * D
    places = indices + (line * I + rows.to(tl.int64)) * width
    filled = tl.zeros([M], tl.int32)
    for first in range(tl.min(begin, 0) // N * N, tl.max(end, 0), N):
        keys = first + tl.arange(0, N)
        kept = (keys[None, :] < sinks) | (keys[None, :] >= own[:, None])
        for head in range(line * per_key, (line + 1) * per_key):
            edge = tl.load(edges + head * I + rows, mask=rows < I, other=float("inf"))
            kept |= _scores(q + head * I * D, k, rows, keys, I, J, D, scale, D_STEP, WIDE) >= edge[:, None]
        kept = kept & (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None]) & (rows < I)[:, None]
        if WRITE:
            place = filled[:, None] + tl.cumsum(kept.to(tl.int32), 1) - 1
            tl.store(places[:, None] + place, tl.broadcast_to(keys[None, :], [M, N]), mask=kept)
        filled += tl.sum(kept.to(tl.int32), 1)
    tl.store(counts + line * I + rows, filled, mask=rows < I)
    if WRITE:
        for first in range(0, width, N):
            at = first + tl.arange(0, N)
            spare = (at[None, :] >= filled[:, None]) & (at < width)[None, :] & (rows < I)[:, None]
            tl.store(places[:, None] + at[None, :], tl.full([M, N], 0, tl.int32) + J, mask=spare)
