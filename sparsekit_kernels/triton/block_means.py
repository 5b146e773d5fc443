"""Block means: one program per block, which reads its tokens once and no padding.

Programs of the same tokens run at the same time: models store the heads of a token side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.block_means import Means, Positions, Rows
from sparsekit.problem import PAD

from . import tile, why_not_here


def why_not(x: Tensor, pos: Tensor, size: int) -> str | None:
    return why_not_here(x)


def block_means(x: Rows, pos: Positions, size: int) -> Means:
    return launch(x, pos, size)


def launch(x: Rows, pos: Positions, size: int, heads: Tensor | None = None) -> Means:
    """Return the block means; heads that a mask [B, heads] leaves out are not read, and have means of 0."""
    (B, g, n, D), h = x.shape, pos.shape[1]
    each, wide = max(g, h), torch.promote_types(x.dtype, torch.float32)
    means = x.new_empty(B, each, -(-n // size), D, dtype=wide)
    width = tile(D, D * 2)
    _block_means[(B * each * means.shape[2],)](
        x, pos, heads, means, *x.stride(), *pos.stride(), B, each, each // g, each // h, n, size, D,
        N=tile(size, max(16, 8192 // width)), D_TILE=width, PAD=PAD,
        WIDE=tl.float64 if wide == torch.float64 else tl.float32,
    )  # fmt: skip
    return means


@triton.jit
def _block_means(
    x, pos, wanted, means, x_b, x_h, x_l, x_d, pos_b, pos_h, pos_l, B, heads, per_x, per_pos, n, size, D,
    N: tl.constexpr, D_TILE: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    block, line = tl.program_id(0) // (B * heads), (tl.program_id(0) % (B * heads)).to(tl.int64)
    b, head = line // heads, line % heads
    x += b * x_b + head // per_x * x_h
    pos += b * pos_b + head // per_pos * pos_h
    d = tl.arange(0, D_TILE)
    first = block * size
    end = tl.minimum(first + size, n)
    if wanted is not None:
        end = tl.where(tl.load(wanted + line) != 0, end, first)
    total, count = tl.zeros([D_TILE], WIDE), 0
    for start in range(first, end, N):
        slot = start + tl.arange(0, N)
        inside = (slot < n) & (slot < first + size)
        real = tl.load(pos + slot * pos_l, mask=inside, other=PAD) != PAD
        near = x + slot.to(tl.int64)[:, None] * x_l + d[None, :] * x_d
        total += tl.sum(tl.load(near, mask=real[:, None] & (d < D)[None, :], other=0.0).to(WIDE), 0)
        count += tl.sum(real.to(tl.int32), 0)
    blocks = tl.num_programs(0) // (B * heads)
    tl.store(means + (line * blocks + block) * D + d, total / tl.maximum(count, 1).to(WIDE), mask=d < D)
