"""Numbers of blocks of each list that rows see: one program per list reads its rows' reach and the list once."""

import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.seen_blocks import Counts, Reach
from sparsekit.plan import Blocks
from sparsekit.problem import PAD

from . import why_not_here

NOBODY = tl.constexpr(PAD)


def why_not(blocks: Blocks, reach: Tensor) -> str | None:
    return why_not_here(blocks.counts)


def seen_blocks(blocks: Blocks, reach: Reach) -> tuple[Counts, Counts]:
    (B, h, I, W), g = blocks.indices.shape, reach.shape[1]
    heads, (m, n) = max(h, g), blocks.size
    whole, part = (blocks.counts.new_empty(B, heads, I) for _ in range(2))
    _seen_blocks[(I, B * heads)](
        reach, blocks.counts.contiguous(), blocks.indices.contiguous(), whole, part, *reach.stride(),
        heads, heads // g, heads // h, reach.shape[2], W, m, n,
        M=min(triton.next_power_of_2(m), 128), N=min(triton.next_power_of_2(W), 1024), num_warps=1,
    )  # fmt: skip
    return whole, part


@triton.jit
def _seen_blocks(
    reach, counts, indices, whole, part, reach_b, reach_h, reach_l, heads, per_reach, per_list, Q, W, m, n,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    i, I = tl.program_id(0), tl.num_programs(0)
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    reach += b * reach_b + h // per_reach * reach_h
    least, most = tl.full([M], NOBODY, tl.int32), tl.zeros([M], tl.int32)
    for start in range(0, m, M):
        row = start + tl.arange(0, M)
        seen = tl.load(reach + (i * m + row) * reach_l, mask=(row < m) & (i * m + row < Q), other=0).to(tl.int32)
        most = tl.maximum(most, seen)
        least = tl.minimum(least, tl.where(seen > 0, seen, NOBODY))
    some = tl.max(most, 0)
    every = tl.minimum(tl.min(least, 0), some) // n  # all rows see the blocks before this one whole
    last = (some + n - 1) // n
    line = (b * (heads // per_list) + h // per_list) * I + i
    length = tl.load(counts + line)
    n_whole, n_seen = tl.zeros([N], tl.int32), tl.zeros([N], tl.int32)
    for start in range(0, length, N):
        slot = start + tl.arange(0, N)
        block = tl.load(indices + line * W + slot, mask=slot < length, other=NOBODY)
        n_whole += (block < every).to(tl.int32)
        n_seen += (block < last).to(tl.int32)
    at = (b * heads + h) * I + i
    all_whole = tl.sum(n_whole, 0)
    tl.store(whole + at, all_whole)
    tl.store(part + at, tl.sum(n_seen, 0) - all_whole)
