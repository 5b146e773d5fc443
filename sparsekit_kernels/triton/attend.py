"""Block-sparse and dense attention with log-sum-exp, one kernel.

A program answers one tile of query rows of one head. Positions ascend, so a row sees the first `reach` keys: causality,
chunks, padding and ragged ends are that one comparison. The key blocks of a list ascend too: those that every row of
the query block sees whole come first and need no mask.
"""

import math

import torch
import triton
import triton.language as tl

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from . import why_not_here

LN2 = tl.constexpr(math.log(2))


def why_not(problem: Problem, plan: Plan) -> str | None:
    if plan.queries or plan.keys:
        return "it does not read through token indices yet: gather first"
    if max(problem.q.shape[3], problem.v.shape[3]) > 256:
        return f"head dim {max(problem.q.shape[3], problem.v.shape[3])} is larger than 256"
    return why_not_here(problem.q)


def attend(problem: Problem, plan: Plan) -> Output:
    p, blocks = problem, plan.blocks
    (B, H, Q, D), (G, K, Dv) = p.q.shape, (*p.k.shape[1:3], p.v.shape[3])
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    reach = p.reach()
    wide = torch.promote_types(q.dtype, torch.float32)
    out = Output(q.new_empty(B, H, Q, Dv), q.new_empty(B, H, Q, dtype=wide))
    if blocks is None:
        size, width, heads = (Q, K), 1, reach.shape[1]
        counts, indices = reach.new_empty(0), reach.new_empty(0)
        whole = counts
    else:
        size, width = blocks.size, blocks.indices.shape[-1]
        heads = max(reach.shape[1], blocks.indices.shape[1])
        reach, indices = to_heads(reach, heads), to_heads(blocks.indices, heads).contiguous()
        whole, part = blocks.seen(p.reach())
        counts, whole = (whole + part).int(), whole.int()
    most_m, most_n, warps = tiles(max(D, Dv))
    m, n = _tile(size[0], most_m), _tile(size[1], most_n)
    per_block = -(-size[0] // m)
    _attend[(-(-Q // size[0]) * per_block, B * H)](
        q, k, v, reach.to(torch.int32).contiguous(), whole, counts, indices, out.o, out.lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        p.scale / math.log(2), H, H // G, heads, Q, K, -(-Q // size[0]), width, size[0], size[1], per_block,
        M=m, N=n, D=D, DV=Dv, D_TILE=_tile(D, 256), DV_TILE=_tile(Dv, 256), SPARSE=blocks is not None,
        WIDE=tl.float64 if wide == torch.float64 else tl.float32, PRECISION="ieee" if wide == q.dtype else "tf32",
        num_warps=warps, num_stages=2,
    )  # fmt: skip
    return out


def tiles(head_dim: int) -> tuple[int, int, int]:
    """Query rows and keys of a tile, at most, and warps: the largest without spills on sm_80, sm_90, sm_100, gfx942."""
    return (128, 64, 8) if head_dim <= 64 else (128, 32, 8) if head_dim <= 128 else (32, 32, 8)


def _tile(n: int, most: int) -> int:
    """A power of two that tl.dot takes, near n."""
    return max(16, min(triton.next_power_of_2(n), most))


@triton.jit
def _attend(
    q, k, v, reach, whole, counts, indices, o, lse,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l,
    scale, H, R, heads, Q, K, I, width, block_q, block_k, per_block,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    SPARSE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    i = tile // per_block
    top_row = i * block_q + (tile % per_block) * M
    mine = tl.arange(0, M)
    row = top_row + mine
    real = (row < Q) & (row < (i + 1) * block_q)
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    chosen = b * heads + h * heads // H
    seen = tl.load(reach + chosen * Q + row, mask=real, other=0)
    first = tl.min(tl.where(seen > 0, seen, K), 0)  # every row that sees anything sees the keys before it
    last = tl.max(seen, 0)
    x = tl.load(
        q + b * q_b + h * q_h + tl.cast(top_row, tl.int64) * q_l + mine[:, None] * q_l + d,
        mask=real[:, None] & (d < D)[None, :],
        other=0.0,
    )
    keys = k + b * k_b + (h // R) * k_h
    values = v + b * v_b + (h // R) * v_h
    top = tl.full([M], -float("inf"), WIDE)  # base 2
    total = tl.zeros([M], WIDE)
    acc = tl.zeros([M, DV_TILE], WIDE)

    if SPARSE:
        at = chosen * I + i
        n_whole, n_all = tl.load(whole + at), tl.load(counts + at)
        for j in range(0, n_whole):
            start = tl.load(indices + at * width + j) * block_k
            for key in range(start, start + block_k, N):
                top, total, acc = _step(
                    x, keys, values, key, start + block_k, seen, k_l, v_l, scale, top, total, acc,
                    N, D, DV, D_TILE, DV_TILE, False, PRECISION,
                )  # fmt: skip
        for j in range(n_whole, n_all):
            start = tl.load(indices + at * width + j) * block_k
            for key in range(start, tl.minimum(start + block_k, last), N):
                top, total, acc = _step(
                    x, keys, values, key, tl.minimum(start + block_k, K), seen, k_l, v_l, scale, top, total, acc,
                    N, D, DV, D_TILE, DV_TILE, True, PRECISION,
                )  # fmt: skip
    else:
        free = first // N * N
        for key in range(0, free, N):
            top, total, acc = _step(
                x, keys, values, key, K, seen, k_l, v_l, scale, top, total, acc,
                N, D, DV, D_TILE, DV_TILE, False, PRECISION,
            )  # fmt: skip
        for key in range(free, last, N):
            top, total, acc = _step(
                x, keys, values, key, K, seen, k_l, v_l, scale, top, total, acc,
                N, D, DV, D_TILE, DV_TILE, True, PRECISION,
            )  # fmt: skip

    empty = (total == 0.0) | (seen == 0)
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, total)[:, None])
    line = (b * H + h) * Q + top_row
    tl.store(
        o + line * DV + mine[:, None] * DV + dv, acc.to(o.dtype.element_ty), mask=real[:, None] & (dv < DV)[None, :]
    )
    tl.store(
        lse + line + mine, tl.where(empty, -float("inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN2), mask=real
    )


@triton.jit
def _step(
    x, keys, values, start, end, seen, k_l, v_l, scale, top, total, acc,
    N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys, online softmax. `end` is where the key block ends: a block may be smaller than a tile."""
    slot = start + tl.arange(0, N)
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    inside = slot < end
    near = slot.to(tl.int64)
    y = tl.load(keys + near[None, :] * k_l + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
    scores = tl.dot(x, y, input_precision=PRECISION, out_dtype=acc.dtype) * scale
    visible = inside[None, :]
    if MASKED:
        visible = visible & (slot[None, :] < seen[:, None])
    scores = tl.where(visible, scores, -float("inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new == -float("inf"), 0.0, new)  # a row that has seen nothing yet
    weights = tl.exp2(scores - safe[:, None])
    decay = tl.exp2(top - safe)
    z = tl.load(values + near[:, None] * v_l + dv[None, :], mask=inside[:, None] & (dv < DV)[None, :], other=0.0)
    acc = acc * decay[:, None] + tl.dot(weights.to(z.dtype), z, input_precision=PRECISION, out_dtype=acc.dtype)
    return new, total * decay + tl.sum(weights, 1), acc
