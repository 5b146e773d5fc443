"""Decompress: all queries attend to their sliding window and to the sinks before it, in one kernel.

Kept queries get their rows afterwards: they are few, so little work is wasted. A tile has 128 rows: the same rows of
as many query heads of a group as there are. So a tile reads little more than one window of keys, in tiles of 64 keys.
The sinks are one more tile of keys. The weights of one tile of keys are multiplied by its values while the scores of
the next tile and their softmax are computed.
"""

import math

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem

from ..triton.scatter_tokens import put_rows
from . import COMPUTING, COPYING, REGISTERS, described, programs, readable, why_not_here
from .attend import barriers, step_of

LN2 = gl.constexpr(math.log(2))
KEYS = 64  # keys of a tile
STAGES = {0: 4, 16: 4, 32: 3, 64: 2}  # room for sinks: tiles of keys, and as many of values, in shared memory


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    p, fill = problem, plan.local
    if fill is None or plan.queries is None:
        return "no dropped query is filled by a sliding window: there is nothing to attend to"
    if not p.causal or p.sliding_window is not None:
        return "it needs causal attention without a sliding window of the problem's own: take triton"
    if p.q.shape[3] != p.v.shape[3]:
        return f"head dims of keys and values differ, {p.q.shape[3]} and {p.v.shape[3]}: take triton"
    if min(fill.sinks, p.k.shape[2]) > max(STAGES):
        return f"{fill.sinks} sinks are more than {max(STAGES)}: take flash or triton"
    if not (p.full and p.queries_last and p.gapless):
        return "it reads no positions: queries must be the last keys, without padding and gaps; take flash or triton"
    return why_not_here(p.q)


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    assert plan.local and plan.queries
    out = window_and_sinks(problem, plan.local.window, plan.local.sinks)
    put_rows(plan.queries, short, out)
    return out


def window_and_sinks(problem: Problem, window: int, sinks: int) -> Output:
    """Compute attention of every query to its last `window` keys and to the keys at positions below `sinks`."""
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    q, k, v = (readable(x) for x in (p.q, p.k, p.v))
    heads, rows, both = split(H // G)
    n_sinks = room(sinks, K)
    q_box, box, sink_box = [1, heads, rows, D], [1, 1, KEYS, D], [1, 1, max(n_sinks, 16), D]
    out = Output(q.new_empty(B, Q, H, D).transpose(1, 2), q.new_empty(B, H, Q, dtype=torch.float32))
    chunks, n_rows = H // G // (heads * (2 if both else 1)), -(-Q // (rows * (1 if both else 2)))
    tiles = B * G * chunks * n_rows
    _window[(min(tiles, programs(q.device)),)](
        described(q, q_box), described(k, box), described(v, box), described(k, sink_box), described(v, sink_box),
        p.k_pos, out.o, out.lse, p.k_pos.stride(0), *out.o.stride()[:3], p.scale / math.log(2), min(sinks, K), H,
        tiles, n_rows, chunks, G, H // G, Q, K, min(window, K), HEADS=heads, ROWS=rows, BOTH=both, N=KEYS, D=D,
        STAGES=STAGES[n_sinks], SINKS=n_sinks, COMPUTING=COMPUTING, COPYING=COPYING, num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return out


def split(heads: int) -> tuple[int, int, bool]:
    """Return heads and rows of a group of warps, and whether the second group has other heads instead of later rows."""
    even = min(heads & -heads, 8)  # the largest power of two that divides it
    return (even // 2, 128 // even, True) if even > 1 else (1, 64, False)


def room(sinks: int, keys: int) -> int:
    """Return the size of the tile that holds the sinks; 0 for no sinks."""
    return max(16, triton.next_power_of_2(min(sinks, keys))) if sinks else 0


@gluon.jit
def _place(tile, n_rows, chunks, G, Q, K, window, HEADS: gl.constexpr, ROWS: gl.constexpr, BOTH: gl.constexpr,
           N: gl.constexpr):  # fmt: skip
    """Return a tile's sequence, group, first head within it, first row, first key of the window and tiles of keys."""
    heads: gl.constexpr = HEADS * 2 if BOTH else HEADS
    rows: gl.constexpr = ROWS if BOTH else ROWS * 2
    row, rest = tile % n_rows * rows, tile // n_rows
    chunk, rest = rest % chunks, rest // chunks
    first = gl.maximum(K - Q + row - window + 1, 0)
    end = gl.minimum(K - Q + row + rows, K)
    return rest // G, rest % G, chunk * heads, row, first, (end - first + N - 1) // N


@gluon.jit
def _copy(
    q, k, v, k_sinks, v_sinks, bars, room, tiles, n_rows, chunks, G, R, Q, K, window,
    HEADS: gl.constexpr, ROWS: gl.constexpr, BOTH: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr,
    SINKS: gl.constexpr,
):  # fmt: skip
    """Copy, in the one warp that copies, the rows of a tile and the sinks, then its keys and values."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    q_room, k_room, v_room, k_sink_room, v_sink_room = room
    step, turn = 0, 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, g, h, row, first, n = _place(tile, n_rows, chunks, G, Q, K, window, HEADS, ROWS, BOTH, N)
        u, head = turn % 2, g * R + h
        mbarrier.wait(q_empty.index(u), ((turn // 2) & 1) ^ 1)
        full = q_full.index(u)
        mbarrier.expect(full, 2 * q.block_type.nbytes + (2 * k_sinks.block_type.nbytes if SINKS else 0))
        tma.async_copy_global_to_shared(q, [b, head, row, 0], full, q_room.index(u * 2))
        if BOTH:
            tma.async_copy_global_to_shared(q, [b, head + HEADS, row, 0], full, q_room.index(u * 2 + 1))
        else:
            tma.async_copy_global_to_shared(q, [b, head, row + ROWS, 0], full, q_room.index(u * 2 + 1))
        if SINKS:
            tma.async_copy_global_to_shared(k_sinks, [b, g, 0, 0], full, k_sink_room.index(u))
            tma.async_copy_global_to_shared(v_sinks, [b, g, 0, 0], full, v_sink_room.index(u))
        for t in range(n):
            s, phase = step % STAGES, ((step // STAGES) & 1) ^ 1
            mbarrier.wait(k_empty.index(s), phase)
            mbarrier.expect(k_full.index(s), k.block_type.nbytes)
            tma.async_copy_global_to_shared(k, [b, g, first + t * N, 0], k_full.index(s), k_room.index(s))
            mbarrier.wait(v_empty.index(s), phase)
            mbarrier.expect(v_full.index(s), v.block_type.nbytes)
            tma.async_copy_global_to_shared(v, [b, g, first + t * N, 0], v_full.index(s), v_room.index(s))
            step += 1
        turn += 1


@gluon.jit
def _attend(
    bars, room, k_pos, o, lse, p_b, o_b, o_h, o_l, scale, sinks, H, tiles, n_rows, chunks, G, R, Q, K, window,
    GROUP: gl.constexpr, HEADS: gl.constexpr, ROWS: gl.constexpr, BOTH: gl.constexpr, N: gl.constexpr,
    D: gl.constexpr, STAGES: gl.constexpr, SINKS: gl.constexpr,
):  # fmt: skip
    """Compute, in one group of four warps, its 64 rows of every tile."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    q_room, k_room, v_room, k_sink_room, v_sink_room = room
    DTYPE: gl.constexpr = q_room.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    FAR: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(SINKS, 16), 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    key = gl.arange(0, N, layout=gl.SliceLayout(0, SCORES))
    stored = gl.arange(0, 64, layout=gl.SliceLayout(1, STORED))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, STORED))
    step, turn = 0, 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, g, h, at, first, n = _place(tile, n_rows, chunks, G, Q, K, window, HEADS, ROWS, BOTH, N)
        if BOTH:
            h += GROUP * HEADS
        else:
            at += GROUP * ROWS
        begin = K - Q + at  # index of the first row among the keys
        low, high = begin + row % ROWS - window + 1, begin + row % ROWS + 1  # the keys that a row sees
        u, s = turn % 2, step % STAGES
        mbarrier.wait(q_full.index(u), (turn // 2) & 1)
        q = q_room.index(u * 2 + GROUP).reshape([64, D]).load(gl.DotOperandLayout(0, SCORES, 2))
        mbarrier.wait(k_full.index(s), (step // STAGES) & 1)
        zero = gl.zeros([64, N], gl.float32, SCORES)
        x = warpgroup_mma(q, k_room.index(s).reshape([N, D]).permute((1, 0)), zero, use_acc=False, is_async=True)
        if SINKS:
            none = gl.zeros([64, SINKS], gl.float32, FAR)
            q_far = gl.convert_layout(q, gl.DotOperandLayout(0, FAR, 2))
            far = k_sink_room.index(u).reshape([SINKS, D]).permute((1, 0))
            y = warpgroup_mma(q_far, far, none, use_acc=False, is_async=True)
            x, y = warpgroup_mma_wait(0, deps=(x, y))
        else:
            x = warpgroup_mma_wait(0, deps=(x,))
        mbarrier.arrive(k_empty.index(s), count=1)
        near = first + key
        x = gl.where((near[None, :] >= low[:, None]) & (near[None, :] < high[:, None]), x, -float("inf"))
        top = gl.max(x, 1) * scale
        acc = gl.zeros([64, D], gl.float32, OUT)
        if SINKS:
            slot = gl.arange(0, SINKS, layout=gl.SliceLayout(0, FAR))
            before = gl.convert_layout(low, gl.SliceLayout(1, FAR))
            real = slot < sinks - gl.load(k_pos + b * p_b)  # sinks are the lowest positions
            y = gl.where(real[None, :] & (slot[None, :] < before[:, None]), y, -float("inf"))
            top = gl.maximum(top, gl.convert_layout(gl.max(y, 1) * scale, gl.SliceLayout(1, SCORES)))
            safe = gl.where(top == -float("inf"), 0.0, top)
            y = gl.exp2(y * scale - gl.convert_layout(safe, gl.SliceLayout(1, FAR))[:, None])
            of_sinks = gl.convert_layout(gl.sum(y, 1), gl.SliceLayout(1, SCORES))
            y = gl.convert_layout(y.to(DTYPE), gl.DotOperandLayout(0, OUT, 2))
            acc = warpgroup_mma(y, v_sink_room.index(u).reshape([SINKS, D]), acc, use_acc=False, is_async=True)
        safe = gl.where(top == -float("inf"), 0.0, top)  # the second group's rows may see no key of the first tile
        x = gl.exp2(x * scale - safe[:, None])
        total = gl.sum(x, 1)
        weights = gl.convert_layout(x.to(DTYPE), gl.DotOperandLayout(0, OUT, 2))
        if SINKS:
            total += of_sinks
            acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.wait(k_full.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1, pred=n > 1)
        free = gl.maximum(gl.cdiv(begin + ROWS - window - first, N), 1)  # no row's window begins in this tile or later
        late = gl.maximum((begin + 1 - first) // N, free)  # some row's window ends in this tile or later
        for t in range(1, gl.minimum(free, n)):
            step, weights, top, total, acc = step_of(
                q, weights, top, total, acc, bars, room, step, first + t * N + key, low, high, scale, t + 1 < n,
                N, D, STAGES, False,
            )  # fmt: skip
        for t in range(free, gl.minimum(late, n)):
            step, weights, top, total, acc = step_of(
                q, weights, top, total, acc, bars, room, step, first + t * N + key, low, high, scale, t + 1 < n,
                N, D, STAGES, True,
            )  # fmt: skip
        for t in range(late, n):
            step, weights, top, total, acc = step_of(
                q, weights, top, total, acc, bars, room, step, first + t * N + key, low, high, scale, t + 1 < n,
                N, D, STAGES, False,
            )  # fmt: skip
        s = step % STAGES
        mbarrier.wait(v_full.index(s), (step // STAGES) & 1)
        acc = warpgroup_mma(weights, v_room.index(s).reshape([N, D]), acc)
        mbarrier.arrive(v_empty.index(s), count=1)
        mbarrier.arrive(q_empty.index(u), count=1)
        step += 1
        turn += 1
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, OUT))[:, None]
        y = gl.convert_layout(acc.to(DTYPE), STORED)
        head, to = g * R + h, at + stored % ROWS
        there = o + b.to(gl.int64) * o_b + (head + stored // ROWS).to(gl.int64) * o_h + to.to(gl.int64) * o_l
        gl.store(there[:, None] + d[None, :], y, mask=(to < Q)[:, None])
        line = lse + (b * H + head + row // ROWS).to(gl.int64) * Q + at + row % ROWS
        gl.store(line, (top + gl.log2(total)) * LN2, mask=at + row % ROWS < Q)


@gluon.jit
def _window(
    q, k, v, k_sinks, v_sinks, k_pos, o, lse, p_b, o_b, o_h, o_l, scale, sinks, H, tiles, n_rows, chunks, G, R, Q, K,
    window, HEADS: gl.constexpr, ROWS: gl.constexpr, BOTH: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, SINKS: gl.constexpr, COMPUTING: gl.constexpr, COPYING: gl.constexpr,
):  # fmt: skip
    MOST: gl.constexpr = max(SINKS, 16)
    room = (
        gl.allocate_shared_memory(q.dtype, [4, 1, HEADS, ROWS, D], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, N, D], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, N, D], v.layout),
        gl.allocate_shared_memory(k.dtype, [2, 1, 1, MOST, D], k_sinks.layout),
        gl.allocate_shared_memory(v.dtype, [2, 1, 1, MOST, D], v_sinks.layout),
    )
    bars = barriers(STAGES)
    gl.warp_specialize(
        [
            (_attend, (bars, room, k_pos, o, lse, p_b, o_b, o_h, o_l, scale, sinks, H, tiles, n_rows, chunks, G, R, Q,
                       K, window, 0, HEADS, ROWS, BOTH, N, D, STAGES, SINKS)),
            (_attend, (bars, room, k_pos, o, lse, p_b, o_b, o_h, o_l, scale, sinks, H, tiles, n_rows, chunks, G, R, Q,
                       K, window, 1, HEADS, ROWS, BOTH, N, D, STAGES, SINKS)),
            (_copy, (q, k, v, k_sinks, v_sinks, bars, room, tiles, n_rows, chunks, G, R, Q, K, window, HEADS, ROWS,
                     BOTH, N, STAGES, SINKS)),
        ],
        [4, 1],
        [COMPUTING, COPYING],
    )  # fmt: skip
