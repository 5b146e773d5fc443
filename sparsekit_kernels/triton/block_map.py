"""The best blocks of a map: means of query blocks, the map's rows, and the search of coverage_mask for each head.

The device knows which heads need their map, and the host does not wait to learn it: programs of the other heads end at
once. The scores are those of threshold_blocks.
"""

import torch
import triton
import triton.language as tl

from sparsekit.ops.block_map import First, Heads, Last, Mask, Means, Positions, Queries

from . import why_not_here
from .block_means import launch
from .coverage_mask import coverage_mask
from .threshold_blocks import DIMS, KEYS, ROWS, _scores

WARPS = 8  # with fewer, registers spill


def why_not(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> str | None:
    return why_not_here(q)


def block_map(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> Mask:
    (B, H, I), (G, J, D) = last.shape, means.shape[1:]
    heads, queries, means = heads.contiguous(), launch(q, q_pos, size, heads), means.contiguous()
    weights, mass = queries.new_empty(B, H, I, J), queries.new_empty(B, H)
    near = first.stride() if first is not None else (0, 0, 0)
    per_first = H // first.shape[1] if first is not None else 1
    _rows[(-(-I // ROWS), B * H)](
        queries, means, heads, first, last, weights, mass, *near, *last.stride(), H, H // G, per_first, I, J, D,
        scale, gamma, M=ROWS, N=KEYS, D_STEP=DIMS, num_warps=WARPS,
        WIDE=tl.float64 if queries.dtype == torch.float64 else tl.float32,
    )  # fmt: skip
    return coverage_mask(weights.flatten(2), mass, True).view(B, H, I, J)


@triton.jit
def _rows(
    q, k, heads, first, last, weights, mass, first_b, first_h, first_l, last_b, last_h, last_l, H, per_key, per_first,
    I, J, D, scale, gamma, M: tl.constexpr, N: tl.constexpr, D_STEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write M rows of a head's map, and with the first ones the mass to find: less than 0 if the head needs none."""
    line = tl.program_id(1).to(tl.int64)
    b, head = line // H, line % H
    last += b * last_b + head * last_h
    wanted = tl.load(heads + line) != 0
    if tl.program_id(0) == 0:
        real = tl.zeros([N], tl.int32)
        for at in range(0, tl.where(wanted, I, 0), N):
            row = at + tl.arange(0, N)
            real += (tl.load(last + row * last_l, mask=row < I, other=-1) >= 0).to(tl.int32)
        found = gamma * tl.sum(real, 0).to(WIDE)
        tl.store(mass + line, tl.where(wanted, found, -1.0))
    if wanted:
        rows = tl.program_id(0) * M + tl.arange(0, M)
        end = tl.load(last + rows * last_l, mask=rows < I, other=-1).to(tl.int32) + 1
        begin = tl.zeros([M], tl.int32)
        if first is not None:
            near = first + b * first_b + head // per_first * first_h
            begin = tl.load(near + rows * first_l, mask=rows < I, other=0).to(tl.int32)
        queries, block_keys = q + line * I * D, k + (b * (H // per_key) + head // per_key) * J * D
        top, total = tl.full([M], float("-inf"), WIDE), tl.zeros([M], WIDE)
        for at in range(tl.min(begin, 0) // N * N, tl.max(end, 0), N):
            keys = at + tl.arange(0, N)
            scores = _scores(queries, block_keys, rows, keys, I, J, D, scale, D_STEP, WIDE)
            scores = tl.where((keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None]), scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - safe) + tl.sum(tl.exp(scores - safe[:, None]), 1)
            top = higher
        safe, whole = tl.where(top == float("-inf"), 0.0, top), tl.where(total > 0.0, total, 1.0)
        places = weights + (line * I + rows.to(tl.int64))[:, None] * J
        for at in range(0, J, N):
            keys = at + tl.arange(0, N)
            x = tl.zeros([M, N], WIDE)
            if at < tl.max(end, 0):
                scores = _scores(queries, block_keys, rows, keys, I, J, D, scale, D_STEP, WIDE)
                seen = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
                x = tl.where(seen, tl.exp(scores - safe[:, None]) / whole[:, None], 0.0)
            tl.store(places + keys[None, :], x, mask=(rows < I)[:, None] & (keys < J)[None, :])
