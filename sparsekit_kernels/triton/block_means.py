"""Block means: a program a block, which reads its tokens once, beside their positions; padding adds nothing.

A step is as large as keeps enough bytes on their way to a program: the means are as fast as memory is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.block_means import Means, Positions, Rows
from sparsekit.problem import PAD

from . import tile, why_not_here

STEP, EACH = 16384, 64  # numbers of a step, at most, and of a thread


def why_not(x: Tensor, pos: Tensor, size: int) -> str | None:
    return why_not_here(x)


def block_means(x: Rows, pos: Positions, size: int) -> Means:
    (B, g, n, D), h = x.shape, pos.shape[1]
    heads, wide = max(g, h), torch.promote_types(x.dtype, torch.float32)
    means = x.new_empty(B, heads, -(-n // size), D, dtype=wide)
    width = tile(D, D * 2)
    _block_means[(means.shape[2], B * heads)](
        x, pos, means, *x.stride(), *pos.stride(), heads, heads // g, heads // h, n, size, D,
        D_TILE=width, PAD=PAD, WIDE=tl.float64 if wide == torch.float64 else tl.float32, **step(size, width),
    )  # fmt: skip
    return means


def step(size: int, width: int) -> dict[str, int]:
    """Tokens of a step, and warps."""
    N = tile(size, max(16, STEP // width))
    return dict(N=N, num_warps=min(max(N * width // (32 * EACH), 1), 8))


@triton.jit
def _block_means(
    x, pos, means, x_b, x_h, x_l, x_d, pos_b, pos_h, pos_l, heads, per_x, per_pos, n, size, D,
    N: tl.constexpr, D_TILE: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    x += b * x_b + head // per_x * x_h
    pos += b * pos_b + head // per_pos * pos_h
    d = tl.arange(0, D_TILE)
    first = tl.program_id(0) * size
    total, count = tl.zeros([D_TILE], WIDE), 0
    for start in range(first, tl.minimum(first + size, n), N):
        slot = start + tl.arange(0, N)
        inside = (slot < n) & (slot < first + size)
        real = tl.load(pos + slot * pos_l, mask=inside, other=PAD) != PAD
        near = x + slot.to(tl.int64)[:, None] * x_l + d[None, :] * x_d
        values = tl.load(near, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(WIDE)  # it waits for no position
        total += tl.sum(tl.where(real[:, None], values, 0.0), 0)
        count += tl.sum(real.to(tl.int32), 0)
    block = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(means + block * D + d, total / tl.maximum(count, 1).to(WIDE), mask=d < D)
