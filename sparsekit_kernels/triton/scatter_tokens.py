"""Decompress: write every row of the output once. Kept queries get their compressed output, dropped ones the fill.

A program computes one tile of original rows of one head. Neighbours share most of a sliding window, so it attends for
all its rows at once, over the keys that the windows of its dropped rows cover.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.fills import SlidingWindow
from sparsekit.plan import Plan, Tokens
from sparsekit.problem import PAD, Output, Problem

from . import target, tile, why_not_here
from .attend import DESCRIBED, LN2, PRECISE, online_softmax

COPIED = 64  # rows of a program that only copies
RANKED = 1024  # tokens of a program that ranks them
ADDED = 64, 4  # rows and warps of a program that adds sinks
NOWHERE = tl.constexpr(PAD)
# for head dims up to 64, 128, 256: rows and keys of a tile that fills, warps, stages; on any target, and on DESCRIBED
FILLED = ((64, 32, 8, 2), (64, 32, 8, 2), (32, 32, 8, 2))
LARGER = ((64, 32, 4, 3), (64, 32, 4, 3), (32, 32, 8, 2))


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    return why_not_rows(problem, plan)


def why_not_rows(problem: Problem, plan: Plan) -> str | None:
    if problem.sliding_window is not None and plan.local:
        return "it supports a sliding window of the fill or of the problem, not both"
    if plan.local and max(problem.q.shape[3], problem.v.shape[3]) > 256:
        return f"head dim {max(problem.q.shape[3], problem.v.shape[3])} is larger than 256"
    return why_not_here(problem.q)


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    return short if plan.queries is None else rows(problem, plan, short)


def rows(problem: Problem, plan: Plan, short: Output | None) -> Output:
    """Return the output at full length; without `short`, rows that see no window get zeros and an lse of -inf."""
    p, fill, t = problem, plan.local, plan.queries
    (B, H, Q, D), (G, K, Dv) = p.q.shape, (*p.k.shape[1:3], p.v.shape[3])
    wide = torch.promote_types(p.q.dtype, torch.float32)
    # store the heads of a token side by side, as FlashAttention-4 writes them and models read them
    out = Output(p.q.new_empty(B, Q, H, Dv).transpose(1, 2), p.q.new_empty(B, H, Q, dtype=wide))
    nothing = torch.empty(0, dtype=torch.int32, device=p.q.device)
    ranks = rank(t) if t else nothing.view(1, 1, 0)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    if fill:
        low, high, sinks = (x.to(torch.int32).contiguous() for x in fill.spans(p))
        m, n, warps, stages = fill_tiles(max(D, Dv), p.q.dtype, target(p.q.device))
        m, heads = tile(Q, m), low.shape[1]
    else:
        low = high = sinks = nothing
        m, n, warps, stages, heads = COPIED, 16, 4, 2, 1
    given = out if short is None else short
    o, lse = given.o if given.o.stride(3) == 1 else given.o.contiguous(), given.lse
    _scatter[(triton.cdiv(Q, m), B * H)](
        q, k, v, ranks, low, high, sinks, o, lse, out.o, out.lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3], *lse.stride(), *out.o.stride()[:3],
        p.scale / math.log(2), H, H // G, ranks.shape[1], heads, Q, K,
        M=m, N=n, D=D, DV=Dv, D_TILE=tile(D, 1024), DV_TILE=tile(Dv, 1024),
        SOME=t is not None, SHORT=short is not None, FILL=fill is not None,
        WIDE=tl.float64 if wide == torch.float64 else tl.float32, PRECISION="ieee" if wide == q.dtype else "tf32",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def rank(tokens: Tokens) -> Tensor:
    """Return `Tokens.rank`, in two launches, from the indices of each choice."""
    idx, n = tokens.idx.contiguous(), tokens.n
    (B, h, S), ranks = idx.shape, idx.new_full((*idx.shape[:2], n), -1)
    _rank[(triton.cdiv(S, RANKED), B * h)](idx, ranks, S, n, N=RANKED)
    return ranks


def put_rows(tokens: Tokens, short: Output, out: Output) -> None:
    """Write the kept queries' rows into `out`, in place."""
    (B, H, S, Dv), idx = short.o.shape, tokens.idx.contiguous()
    _put[(triton.cdiv(S, COPIED), B * H)](
        idx, short.o, short.lse, out.o, out.lse,
        *short.o.stride(), *short.lse.stride(), *out.o.stride(), *out.lse.stride(),
        H, idx.shape[1], S, tokens.n, DV=Dv, DV_TILE=tile(Dv, 1024), M=COPIED,
    )  # fmt: skip


def add_sinks(problem: Problem, fill: SlidingWindow, out: Output) -> None:
    """Merge the sinks before each query's window into `out`, in place; `out` holds attention over the window.

    Each row is read and written once. The two parts are merged by log-sum-exp.
    """
    p = problem
    (B, H, Q, D), (G, K, Dv) = p.q.shape, (*p.k.shape[1:3], p.v.shape[3])
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    slots, wide = min(fill.sinks, K), out.lse.dtype  # no other key can have a position that low
    m, warps = ADDED
    _add_sinks[(triton.cdiv(Q, m), B * H)](
        q, k, v, p.q_pos, p.k_pos, out.o, out.lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *p.q_pos.stride(), *p.k_pos.stride(),
        *out.o.stride(), *out.lse.stride(),
        p.scale / math.log(2), fill.window, fill.sinks, slots, H, H // G, p.q_pos.shape[1], p.k_pos.shape[1], Q,
        M=m, N=max(16, min(triton.next_power_of_2(slots), 64)), D=D, DV=Dv, D_TILE=tile(D, 1024),
        DV_TILE=tile(Dv, 1024), WIDE=tl.float64 if wide == torch.float64 else tl.float32,
        PRECISION="ieee" if wide == q.dtype else "tf32", num_warps=warps,
    )  # fmt: skip


def fill_tiles(head_dim: int, dtype: torch.dtype, target: str) -> tuple[int, int, int, int]:
    rows = PRECISE if dtype.itemsize > 2 else LARGER if target in DESCRIBED else FILLED
    return rows[0] if head_dim <= 64 else rows[1] if head_dim <= 128 else rows[2]


@triton.jit
def _scatter(
    q, k, v, ranks, lows, highs, sinks, short_o, short_lse, o, lse,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l, lse_b, lse_h, lse_l, out_b, out_h, out_l,
    scale, H, R, choices, heads, Q, K,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    SOME: tl.constexpr, SHORT: tl.constexpr, FILL: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    row = tl.program_id(0) * M + tl.arange(0, M)
    real = row < Q
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    wide = (dv < DV)[None, :]
    rank = row  # a plan without tokens keeps every query
    if SOME:
        rank = tl.load(ranks + (b * choices + h * choices // H) * Q + row, mask=real, other=0)
    kept = rank >= 0
    values = tl.zeros([M, DV_TILE], WIDE)
    logs = tl.full([M], -float("inf"), WIDE)
    if SHORT:
        copied, at, head = real & kept, rank.to(tl.int64), h.to(tl.int64)
        rows = short_o + b * o_b + head * o_h + at[:, None] * o_l + dv
        values = tl.load(rows, mask=copied[:, None] & wide, other=0.0).to(WIDE)
        logs = tl.load(short_lse + b * lse_b + head * lse_h + at * lse_l, mask=copied, other=-float("inf")).to(WIDE)

    if FILL:
        asked = real & ~kept
        if tl.max(asked.to(tl.int32), 0) > 0:
            at = (b * heads + h * heads // H) * Q + row
            low, high = tl.load(lows + at, mask=asked, other=0), tl.load(highs + at, mask=asked, other=0)
            first = tl.load(sinks + at, mask=asked, other=0)
            start = tl.min(tl.where(high > low, low, K), 0) // N * N
            end = tl.max(tl.maximum(high, first), 0)
            x = tl.load(
                q + b * q_b + h.to(tl.int64) * q_h + row.to(tl.int64)[:, None] * q_l + d,
                mask=asked[:, None] & (d < D)[None, :],
                other=0.0,
            )
            keys = k + b * k_b + (h // R).to(tl.int64) * k_h
            contents = v + b * v_b + (h // R).to(tl.int64) * v_h
            top = tl.full([M], -float("inf"), WIDE)  # base 2
            total = tl.zeros([M], WIDE)
            acc = tl.zeros([M, DV_TILE], WIDE)
            for key in range(0, tl.minimum(tl.max(first, 0), start), N):
                top, total, acc = _window_step(
                    x, keys, contents, key, start, low, high, first, k_l, v_l, scale, top, total, acc,
                    N, D, DV, D_TILE, DV_TILE, PRECISION,
                )  # fmt: skip
            for key in range(start, end, N):
                top, total, acc = _window_step(
                    x, keys, contents, key, K, low, high, first, k_l, v_l, scale, top, total, acc,
                    N, D, DV, D_TILE, DV_TILE, PRECISION,
                )  # fmt: skip
            empty = total == 0.0
            total = tl.where(empty, 1.0, total)
            filled = tl.where(empty[:, None], 0.0, acc / total[:, None])
            near = tl.where(empty, -float("inf"), (top + tl.log2(total)) * LN2)
            values = tl.where(asked[:, None], filled, values)
            logs = tl.where(asked, near, logs)

    o += b * out_b + h.to(tl.int64) * out_h + row.to(tl.int64)[:, None] * out_l + dv
    tl.store(o, values.to(o.dtype.element_ty), mask=real[:, None] & wide)
    tl.store(lse + (b * H + h) * Q + row, logs, mask=real)


@triton.jit
def _rank(idx, ranks, S, n, N: tl.constexpr):
    row, slot = tl.program_id(1).to(tl.int64), tl.program_id(0) * N + tl.arange(0, N)
    token = tl.load(idx + row * S + slot, mask=slot < S, other=n)
    tl.store(ranks + row * n + token, slot, mask=token < n)  # beyond are padding slots


@triton.jit
def _put(
    idx, short_o, short_lse, o, lse,
    s_b, s_h, s_l, s_d, t_b, t_h, t_l, o_b, o_h, o_l, o_d, lse_b, lse_h, lse_l,
    H, choices, S, n, DV: tl.constexpr, DV_TILE: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    h = head.to(tl.int64)
    slot = tl.program_id(0) * M + tl.arange(0, M)
    row = tl.load(idx + (b * choices + head * choices // H) * S + slot, mask=slot < S, other=n)
    dv = tl.arange(0, DV_TILE)
    real = row < n  # beyond are padding slots
    both = real[:, None] & (dv < DV)[None, :]
    slot, row = slot.to(tl.int64), row.to(tl.int64)
    x = tl.load(short_o + b * s_b + h * s_h + slot[:, None] * s_l + dv * s_d, mask=both, other=0.0)
    x_lse = tl.load(short_lse + b * t_b + h * t_h + slot * t_l, mask=real, other=0.0)
    o += b * o_b + h * o_h + row[:, None] * o_l + dv * o_d
    lse += b * lse_b + h * lse_h + row * lse_l
    tl.store(o, x.to(o.dtype.element_ty), mask=both)
    tl.store(lse, x_lse, mask=real)


@triton.jit
def _add_sinks(
    q, k, v, q_pos, k_pos, o, lse,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, p_b, p_h, p_l, r_b, r_h, r_l,
    o_b, o_h, o_l, o_d, lse_b, lse_h, lse_l,
    scale, window, sinks, slots, H, R, q_heads, k_heads, Q,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    h, group = head.to(tl.int64), (head // R).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    at = row.to(tl.int64)
    place = tl.load(q_pos + b * p_b + head * q_heads // H * p_h + row * p_l, mask=row < Q, other=-1)
    last = place - window  # sinks up to here are not in the window, which is causal; padding has no window
    beyond = (last >= 0) & (place != NOWHERE)
    if tl.max(beyond.to(tl.int32), 0) > 0:
        d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
        wide = beyond[:, None] & (dv < DV)[None, :]
        x = tl.load(q + b * q_b + h * q_h + at[:, None] * q_l + d, mask=beyond[:, None] & (d < D)[None, :], other=0.0)
        cells, ends = o + b * o_b + h * o_h + at[:, None] * o_l + dv * o_d, lse + b * lse_b + h * lse_h + at * lse_l
        near, near_lse = tl.load(cells, mask=wide, other=0.0), tl.load(ends, mask=beyond, other=-float("inf"))
        keys, contents = k + b * k_b + group * k_h, v + b * v_b + group * v_h
        places = k_pos + b * r_b + head * k_heads // H * r_h
        top = tl.full([M], -float("inf"), WIDE)  # base 2
        total = tl.zeros([M], WIDE)
        acc = tl.zeros([M, DV_TILE], WIDE)
        for start in range(0, slots, N):
            slot = start + tl.arange(0, N)
            inside, where = slot < slots, slot.to(tl.int64)
            key = tl.load(places + slot * r_l, mask=inside, other=NOWHERE)
            y = tl.load(keys + where[None, :] * k_l + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
            z = tl.load(
                contents + where[:, None] * v_l + dv[None, :], mask=inside[:, None] & (dv < DV)[None, :], other=0.0
            )
            visible = (key < sinks)[None, :] & (key[None, :] <= last[:, None]) & beyond[:, None]
            top, total, acc = online_softmax(x, y, z, visible, scale, top, total, acc, False, PRECISION)
        empty = total == 0.0
        total = tl.where(empty, 1.0, total)
        far = tl.where(empty, -float("inf"), (top + tl.log2(total)) * LN2)
        values, logs = _merged(near.to(WIDE), near_lse, acc / total[:, None], far)
        tl.store(cells, values.to(o.dtype.element_ty), mask=wide)
        tl.store(ends, logs, mask=beyond)


@triton.jit
def _merged(x, x_lse, y, y_lse):
    """Merge the outputs over two disjoint sets of keys; return rows and natural log-sum-exps over both."""
    top = tl.maximum(x_lse, y_lse)
    safe = tl.where(top == -float("inf"), 0.0, top)
    mine, theirs = tl.exp(x_lse - safe), tl.exp(y_lse - safe)
    total = mine + theirs
    some = tl.where(total == 0.0, 1.0, total)
    return (x * mine[:, None] + y * theirs[:, None]) / some[:, None], top + tl.log(some)


@triton.jit
def _window_step(
    x, keys, values, start, end, low, high, first, k_l, v_l, scale, top, total, acc,
    N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_TILE: tl.constexpr, DV_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to the running softmax: those in each row's window, and its sinks."""
    slot = start + tl.arange(0, N)
    d, dv = tl.arange(0, D_TILE), tl.arange(0, DV_TILE)
    inside = slot < end
    place = slot.to(tl.int64)
    y = tl.load(keys + place[None, :] * k_l + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
    z = tl.load(values + place[:, None] * v_l + dv[None, :], mask=inside[:, None] & (dv < DV)[None, :], other=0.0)
    near = (slot[None, :] >= low[:, None]) & (slot[None, :] < high[:, None])
    visible = inside[None, :] & (near | (slot[None, :] < first[:, None]))
    return online_softmax(x, y, z, visible, scale, top, total, acc, False, PRECISION)
