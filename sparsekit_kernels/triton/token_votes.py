"""Votes smoothed and averaged over heads in one pass: a program owns a tile of tokens and goes through the heads."""

import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.token_votes import Lengths, Mean, Scores
from sparsekit.problem import to_heads

from . import why_not_here


def why_not(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> str | None:
    return why_not_here(scores)


def token_votes(scores: Scores, scored: Lengths, real: Lengths, pool: int, sinks: int) -> tuple[Scores, Mean]:
    B, H, K = scores.shape
    ends = [to_heads(n, H).contiguous() if n.ndim else int(n) for n in (scored, real)]
    votes, mean = scores.new_empty(B, H, K), scores.new_empty(B, K)
    _token_votes[(triton.cdiv(K, 512), B)](
        scores, *ends, votes, mean, *scores.stride(), H, K, sinks, POOL=pool, N=512, PER_HEAD=scored.ndim > 0,
        WIDE=tl.float64 if scores.dtype.itemsize == 8 else tl.float32,
    )  # fmt: skip
    return votes, mean


@triton.jit
def _token_votes(
    scores, scored, real, votes, mean, s_b, s_h, s_l, H, K, sinks,
    POOL: tl.constexpr, N: tl.constexpr, PER_HEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * N + tl.arange(0, N)
    scores += b * s_b
    total, everyone = tl.zeros([N], WIDE), slot < K
    for h in range(H):
        end, last = scored, real
        if PER_HEAD:
            end, last = tl.load(scored + b * H + h), tl.load(real + b * H + h)
        smooth = tl.zeros([N], WIDE)
        for o in range(POOL):
            at = slot + o - POOL // 2
            near = scores + h * s_h + at.to(tl.int64) * s_l
            smooth += tl.load(near, mask=(at >= 0) & (at < end), other=0.0)
        smooth /= POOL
        beyond = tl.where(slot < last, float("inf"), -float("inf"))
        ranked = (slot >= sinks) & (slot < end)
        tl.store(votes + (b * H + h) * K + slot, tl.where(ranked, smooth, beyond), mask=slot < K)
        total += smooth
        everyone = everyone & (slot < end)
    tl.store(mean + b * K + slot, tl.where(everyone, total / H, float("inf")), mask=slot < K)
