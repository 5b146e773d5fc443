"""The query-aware heads: one program per head reads the block means twice, for the softmax and for the distance."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.query_aware import Aware, Blocks, Means, Pooled, Probe

from . import tile, why_not_here

SIZE, WARPS = 8192, 16  # entries of a step, and warps of a program


def why_not(probe: Tensor, means: Tensor, pooled: Tensor, blocks: Tensor, scale: float, tau: float) -> str | None:
    return why_not_here(probe)


def query_aware(probe: Probe, means: Means, pooled: Pooled, blocks: Blocks, scale: float, tau: float) -> Aware:
    (B, H, D), (h, J) = probe.shape, means.shape[1:3]
    aware, width = torch.empty(B, H, dtype=torch.bool, device=probe.device), tile(D, 2 * D)
    _query_aware[(H, B)](
        probe, means, pooled, blocks.contiguous() if blocks.ndim else int(blocks), aware, scale, tau,
        *probe.stride(), *means.stride(), *pooled.stride(), H // h, J, D, N=max(SIZE // width, 1),
        D_TILE=width, PER_HEAD=blocks.ndim > 0, WIDE=tl.float64 if probe.dtype.itemsize == 8 else tl.float32,
        num_warps=WARPS,
    )  # fmt: skip
    return aware


@triton.jit
def _query_aware(
    probe, means, pooled, blocks, aware, scale, tau, q_b, q_h, q_d, k_b, k_h, k_l, k_d, p_b, p_h, p_l, per, J, D,
    N: tl.constexpr, D_TILE: tl.constexpr, PER_HEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b, head, H = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64), tl.num_programs(0)
    means, pooled = means + b * k_b + head // per * k_h, pooled + b * p_b + head * p_h
    d, one = tl.arange(0, D_TILE), tl.arange(0, N)
    q = tl.load(probe + b * q_b + head * q_h + d * q_d, mask=d < D, other=0.0).to(WIDE) * scale
    end = blocks
    if PER_HEAD:
        end = tl.load(blocks + b * H + head)
    most, total = tl.full([N], -float("inf"), WIDE), tl.zeros([N], WIDE)
    for start in range(0, J, N):
        score = _scores(means, k_l, k_d, q, start + one, J, end, d, D, WIDE)
        new = tl.maximum(most, score)
        safe = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(most - safe) + tl.exp(score - safe)
        most = new
    highest = tl.max(most, 0)
    whole = tl.sum(total * tl.exp(most - highest), 0)
    sums = tl.zeros([N], WIDE)
    for start in range(0, J, N):
        j = start + one
        estimate = tl.exp(_scores(means, k_l, k_d, q, j, J, end, d, D, WIDE) - highest) / whole
        found = tl.load(pooled + j.to(tl.int64) * p_l, mask=j < J, other=0.0).to(WIDE)
        middle = (estimate + found) / 2
        for_estimate = tl.where(estimate == 0.0, 0.0, estimate * tl.log(estimate / middle))
        sums += for_estimate + tl.where(found == 0.0, 0.0, found * tl.log(found / middle))
    distance = tl.sqrt(tl.maximum(tl.sum(sums, 0) / 2, 0.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(aware + b * H + head, distance < tau)


@triton.jit
def _scores(means, k_l, k_d, q, j, J, end, d, D, WIDE: tl.constexpr):
    near = means + j.to(tl.int64)[:, None] * k_l + d[None, :] * k_d
    x = tl.load(near, mask=(j < J)[:, None] & (d < D)[None, :], other=0.0).to(WIDE)
    return tl.where((j < J) & (j < end), tl.sum(x * q[None, :], 1), -float("inf"))
