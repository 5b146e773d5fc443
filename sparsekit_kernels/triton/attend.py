"""Dense, block-sparse and indexed attention with log-sum-exp, one kernel.

A program computes one tile of query rows of one head. Positions ascend, so a row sees the first `reach` keys: this one
comparison covers causality, chunks, padding and ragged ends. The key blocks of a list ascend too: those that every row
of the query block sees whole come first and need no mask. Kept tokens are read through their indices, without a copy,
and their output rows are written at full length; all other rows are zero before the kernel starts.
"""

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from . import target, tile, why_not_here
from .seen_blocks import seen_blocks

DESCRIBED = ("sm_90", "sm_100")  # targets with a copy engine that reads tiles through tensor descriptors
LN2 = tl.constexpr(math.log(2))
# per target, for head dims up to 64, 128, 256: query rows and keys of a tile, warps, stages; in 16 bits they compile
# without spills, and fit the shared memory that every GPU of the family has
TILES = {
    "sm_80": ((128, 64, 8, 3), (64, 64, 8, 2), (32, 32, 8, 2)),
    "sm_90": ((128, 128, 8, 3), (128, 64, 8, 3), (64, 32, 8, 2)),
    "sm_100": ((128, 64, 8, 3), (128, 64, 8, 3), (64, 64, 8, 2)),
    "gfx942": ((128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
}
DENSE = {("sm_90", 128): (128, 128, 8, 3)}  # without block lists it needs fewer registers
PRECISE = ((32, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2))  # float32, on any target: exact, without tensor cores


def why_not(problem: Problem, plan: Plan) -> str | None:
    if max(problem.q.shape[3], problem.v.shape[3]) > 256:
        return f"head dim {max(problem.q.shape[3], problem.v.shape[3])} is larger than 256"
    return why_not_here(problem.q)


def attend(problem: Problem, plan: Plan) -> Output:
    p, blocks = problem, plan.blocks
    (B, H, n_q, D), (G, n_k, Dv) = p.q.shape, (*p.k.shape[1:3], p.v.shape[3])
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    # gather only the positions of the kept tokens
    short = plan.compress(replace(p, q=q[..., :0], k=k[..., :0], v=v[..., :0]))
    Q, K = short.q.shape[2], short.k.shape[2]
    reach = first = short.reach()  # `first` is read only with a sliding window
    if p.sliding_window is not None:
        first = short.start().contiguous()
        reach = to_heads(reach, first.shape[1]).contiguous()
    wide = torch.promote_types(q.dtype, torch.float32)
    if plan.queries:
        out = Output(q.new_zeros(B, H, n_q, Dv), q.new_full((B, H, n_q), float("-inf"), dtype=wide))
    else:
        out = Output(q.new_empty(B, H, n_q, Dv), q.new_empty(B, H, n_q, dtype=wide))
    if blocks is None:
        size, width, heads, list_heads = (Q, K), 1, 1, 1
        whole = counts = indices = reach.new_empty(0, dtype=torch.int32)
    else:
        size, width, indices = blocks.size, blocks.indices.shape[-1], blocks.indices.contiguous()
        whole, part = seen_blocks(blocks, reach)
        counts, heads, list_heads = whole + part, whole.shape[1], indices.shape[1]
        if p.sliding_window is not None:  # `seen_blocks` looks at their ends only; the window may hide their starts
            whole = torch.zeros_like(whole)
    nothing = reach.new_empty(0, dtype=torch.int32)
    q_idx, k_idx = (t.idx.contiguous() if t else nothing for t in (plan.queries, plan.keys))
    gpu = target(q.device)
    most_m, most_n, warps, stages = tiles(max(D, Dv), q.dtype, gpu, blocks is not None)
    m, n = tile(size[0], most_m), tile(size[1], most_n)
    per_block = -(-size[0] // m)
    described = plan.keys is None and gpu in DESCRIBED and fits_descriptor(k) and fits_descriptor(v)
    keys, values = (_descriptor(x, n) for x in (k, v)) if described else (k, v)
    _attend[(-(-Q // size[0]) * per_block, B * H)](
        q, keys, values, q_idx, k_idx, reach, first, whole, counts, indices, out.o, out.lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *reach.stride(),
        p.scale / math.log(2), H, H // G, reach.shape[1], heads, list_heads, q_idx.shape[1] if plan.queries else 1,
        k_idx.shape[1] if plan.keys else 1, n_q, n_k, Q, K, -(-Q // size[0]), width, size[0], size[1], per_block,
        M=m, N=n, D=D, DV=Dv, D_TILE=tile(D, 256), DV_TILE=tile(Dv, 256), PER=-(-size[1] // n) if blocks else 1,
        SPARSE=blocks is not None, EVEN=size[1] % n == 0, SOME_QUERIES=plan.queries is not None,
        SOME_KEYS=plan.keys is not None, DESCRIBED=described, WINDOW=p.sliding_window is not None,
        WIDE=tl.float64 if wide == torch.float64 else tl.float32, PRECISION="ieee" if wide == q.dtype else "tf32",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def tiles(head_dim: int, dtype: torch.dtype, target: str, sparse: bool) -> tuple[int, int, int, int]:
    """Return the largest numbers of query rows and keys of a tile, its warps and its stages."""
    most = 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256
    row = (PRECISE if dtype.itemsize > 2 else TILES.get(target, TILES["sm_80"]))[(64, 128, 256).index(most)]
    return row if sparse or dtype.itemsize > 2 else DENSE.get((target, most), row)


def fits_descriptor(x: Tensor) -> bool:
    """Return whether the copy engine can read the tensor: rows aligned to 16 bytes, and no expanded axis."""
    steps = zip(x.stride()[:3], x.shape[:3], strict=True)
    return x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 and (s or n == 1) for s, n in steps)


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, tile(x.shape[3], 256)])


@triton.jit
def _attend(
    q, k, v, q_idx, k_idx, reach, first, whole, counts, indices, o, lse,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, reach_b, reach_h, reach_l,
    scale, H, R, reach_heads, heads, list_heads, q_heads, k_heads, n_q, n_k, Q, K, I, width, block_q, block_k,
    per_block,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    PER: tl.constexpr, SPARSE: tl.constexpr, EVEN: tl.constexpr, SOME_QUERIES: tl.constexpr, SOME_KEYS: tl.constexpr,
    DESCRIBED: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    i = tile // per_block
    row = i * block_q + (tile % per_block) * M + tl.arange(0, M)
    real = (row < Q) & (row < (i + 1) * block_q)
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    reach += b * reach_b + h * reach_heads // H * reach_h
    seen = tl.load(reach + row * reach_l, mask=real, other=0).to(tl.int32)
    last, lowest, start_at = tl.max(seen, 0), 0, seen
    if WINDOW:
        first += b * reach_b + h * reach_heads // H * reach_h
        start_at = tl.load(first + row * reach_l, mask=real, other=0).to(tl.int32)
        lowest = tl.min(tl.where(seen > start_at, start_at, last), 0)
    place = row  # of the row in the original sequence
    if SOME_QUERIES:
        place = tl.load(q_idx + (b * q_heads + h * q_heads // H) * Q + row, mask=real, other=n_q)
        real = real & (place < n_q)
    place = place.to(tl.int64)
    x = tl.load(
        q + b * q_b + h.to(tl.int64) * q_h + place[:, None] * q_l + d, mask=real[:, None] & (d < D)[None, :], other=0.0
    )
    k_idx += (b * k_heads + h * k_heads // H) * K
    keys, values = k, v
    if not DESCRIBED:
        keys = k + b * k_b + (h // R).to(tl.int64) * k_h
        values = v + b * v_b + (h // R).to(tl.int64) * v_h
    at_b, at_g = b.to(tl.int32), h // R
    top = tl.full([M], -float("inf"), WIDE)  # base 2
    total = tl.zeros([M], WIDE)
    acc = tl.zeros([M, DV_TILE], WIDE)

    if SPARSE:
        at = (b * heads + h * heads // H) * I + i
        n_whole, n_all = tl.load(whole + at), tl.load(counts + at)
        lists = indices + ((b * list_heads + h * list_heads // H) * I + i) * width
        # load the next block's index a step ahead, so that its address waits for no load and its copy begins early
        start = tl.load(lists, mask=n_all > 0, other=0) * block_k
        for t in range(0, n_whole * PER):
            top, total, acc = _step(
                x, keys, values, k_idx, n_k, at_b, at_g, start + t % PER * N, start + block_k, seen,
                start_at, k_l, v_l, scale, top, total, acc, N, D, DV, D_TILE, DV_TILE, EVEN, SOME_KEYS, DESCRIBED,
                WINDOW, PRECISION,
            )  # fmt: skip
            start = tl.load(lists + (t + 1) // PER, mask=(t + 1) // PER < n_all, other=0) * block_k
        for t in tl.range(n_whole * PER, n_all * PER, num_stages=1):
            start = tl.load(lists + t // PER) * block_k
            if (start + t % PER * N < last) & (start + t % PER * N + N > lowest):
                top, total, acc = _step(
                    x, keys, values, k_idx, n_k, at_b, at_g, start + t % PER * N, tl.minimum(start + block_k, K),
                    seen, start_at, k_l, v_l, scale, top, total, acc, N, D, DV, D_TILE, DV_TILE, False, SOME_KEYS,
                    DESCRIBED, WINDOW, PRECISION,
                )  # fmt: skip
    else:
        # every row that sees any key sees all keys before `free`
        free = lowest // N * N if WINDOW else tl.minimum(tl.min(tl.where(seen > 0, seen, K), 0), last) // N * N
        for key in range(0, 0 if WINDOW else free, N):
            top, total, acc = _step(
                x, keys, values, k_idx, n_k, at_b, at_g, key, K, seen, start_at, k_l, v_l, scale, top, total, acc,
                N, D, DV, D_TILE, DV_TILE, True, SOME_KEYS, DESCRIBED, WINDOW, PRECISION,
            )  # fmt: skip
        for key in tl.range(free, last, N, num_stages=1):
            top, total, acc = _step(
                x, keys, values, k_idx, n_k, at_b, at_g, key, K, seen, start_at, k_l, v_l, scale, top, total, acc,
                N, D, DV, D_TILE, DV_TILE, False, SOME_KEYS, DESCRIBED, WINDOW, PRECISION,
            )  # fmt: skip

    empty = (total == 0.0) | (seen == 0)
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, total)[:, None])
    line = (b * H + h) * n_q + place
    tl.store(o + line[:, None] * DV + dv, acc.to(o.dtype.element_ty), mask=real[:, None] & (dv < DV)[None, :])
    tl.store(lse + line, tl.where(empty, -float("inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN2), mask=real)


@triton.jit
def _step(
    x, keys, values, k_idx, n_k, b, g, start, end, seen, start_at, k_l, v_l, scale, top, total, acc,
    N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    WHOLE: tl.constexpr, SOME_KEYS: tl.constexpr, DESCRIBED: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to the running softmax; unless it is WHOLE it ends at `end`, the end of the block.

    Unless it is WHOLE, each row sees the keys before `seen`, with a WINDOW only those from `start_at` on.
    """
    slot = start + tl.arange(0, N)
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    inside = slot < end
    if DESCRIBED:
        y = tl.reshape(keys.load([b, g, start, 0]), [N, D_TILE]).T
        z = tl.reshape(values.load([b, g, start, 0]), [N, DV_TILE])
    elif WHOLE:
        place = (tl.load(k_idx + slot) if SOME_KEYS else slot).to(tl.int64)
        y = tl.load(keys + place[None, :] * k_l + d[:, None], mask=(d < D)[:, None], other=0.0)
        z = tl.load(values + place[:, None] * v_l + dv[None, :], mask=(dv < DV)[None, :], other=0.0)
    else:
        place = slot
        if SOME_KEYS:
            place = tl.load(k_idx + slot, mask=inside, other=n_k)
            inside = inside & (place < n_k)
        place = place.to(tl.int64)
        y = tl.load(keys + place[None, :] * k_l + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
        z = tl.load(values + place[:, None] * v_l + dv[None, :], mask=inside[:, None] & (dv < DV)[None, :], other=0.0)
    visible = inside[None, :] & (slot[None, :] < seen[:, None])
    if WINDOW:
        visible = visible & (slot[None, :] >= start_at[:, None])
    return online_softmax(x, y, z, visible, scale, top, total, acc, WHOLE, PRECISION)


@triton.jit
def online_softmax(x, y, z, visible, scale, top, total, acc, WHOLE: tl.constexpr, PRECISION: tl.constexpr):
    """Add the visible keys y [D, N] (all, if WHOLE) and values z [N, Dv] of one tile to the softmax of rows x [M, D].

    `scale` is above 0. `top` is the largest scaled score so far, in base 2.
    """
    scores = tl.dot(x, y, input_precision=PRECISION, out_dtype=acc.dtype)
    if not WHOLE:
        scores = tl.where(visible, scores, -float("inf"))
    new = tl.maximum(top, tl.max(scores, 1) * scale)
    safe = new
    if not WHOLE:
        safe = tl.where(new == -float("inf"), 0.0, new)  # for a row that has seen no key yet
    weights = tl.exp2(scores * scale - safe[:, None])
    decay = tl.exp2(top - safe)
    acc = acc * decay[:, None] + tl.dot(weights.to(z.dtype), z, input_precision=PRECISION, out_dtype=acc.dtype)
    return new, total * decay + tl.sum(weights, 1), acc
