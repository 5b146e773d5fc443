"""Votes, smoothed and averaged over heads in one pass: a program owns a tile of tokens and reads all heads.

It reads several heads at once, so that loads for one head do not wait until the votes of another are stored.
"""

import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.token_votes import Lengths, Mean, Scores
from sparsekit.problem import to_heads

from . import why_not_here

HEADS, TOKENS, WARPS = 8, 128, 4  # heads, tokens and warps of a tile


def why_not(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> str | None:
    return why_not_here(scores)


def token_votes(scores: Scores, scored: Lengths, real: Lengths, pool: int, sinks: int) -> tuple[Scores, Mean]:
    B, H, K = scores.shape
    ends = [to_heads(n, H).contiguous() if n.ndim else int(n) for n in (scored, real)]
    votes, mean = scores.new_empty(B, H, K), scores.new_empty(B, K)
    _token_votes[(triton.cdiv(K, TOKENS), B)](
        scores, *ends, votes, mean, *scores.stride(), H, K, sinks, POOL=pool,
        M=min(triton.next_power_of_2(H), HEADS), N=TOKENS, PER_HEAD=scored.ndim > 0,
        WIDE=tl.float64 if scores.dtype.itemsize == 8 else tl.float32, num_warps=WARPS,
    )  # fmt: skip
    return votes, mean


@triton.jit
def _token_votes(
    scores, scored, real, votes, mean, s_b, s_h, s_l, H, K, sinks,
    POOL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PER_HEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * N + tl.arange(0, N)
    total, least = tl.zeros([N], WIDE), tl.full([], 0, tl.int32) + K
    for first in range(0, H, M):
        head = first + tl.arange(0, M)
        inside, line = head < H, (b * H + head)[:, None] * K
        if PER_HEAD:
            end = tl.load(scored + b * H + head, mask=inside, other=0).to(tl.int32)
            last = tl.load(real + b * H + head, mask=inside, other=0).to(tl.int32)
        else:
            end, last = tl.full([M], 0, tl.int32) + scored, tl.full([M], 0, tl.int32) + real
        smooth = tl.zeros([M, N], WIDE)
        for o in tl.range(POOL, loop_unroll_factor=POOL if POOL < 16 else 1):
            at = slot + o - POOL // 2
            near = scores + b * s_b + head.to(tl.int64)[:, None] * s_h + at.to(tl.int64) * s_l
            smooth += tl.load(near, mask=inside[:, None] & (at >= 0) & (at < end[:, None]), other=0.0)
        smooth /= POOL
        beyond = tl.where(slot < last[:, None], float("inf"), -float("inf"))
        ranked = (slot >= sinks) & (slot < end[:, None])
        tl.store(votes + line + slot, tl.where(ranked, smooth, beyond), mask=inside[:, None] & (slot < K))
        total += tl.sum(smooth, 0)
        least = tl.minimum(least, tl.min(tl.where(inside, end, K), 0))
    tl.store(mean + b * K + slot, tl.where(slot < least, total / H, float("inf")), mask=slot < K)
