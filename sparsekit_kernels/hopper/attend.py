"""Block-sparse attention with log-sum-exp.

A tile has 128 query rows of one head. A program asks a counter for its next tile while it still computes one, so that
programs with short lists compute more tiles. The heads of one group come in turn, with their last rows first: what
they read stays in the cache, and the longest rows do not come last. The weights of one tile of keys are multiplied by
its values while the scores of the next tile and their softmax are computed.
"""

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem

from ..triton.seen_blocks import seen_blocks
from . import COMPUTING, COPYING, REGISTERS, described, programs, readable, why_not_here

LN2 = gl.constexpr(math.log(2))
ROWS = 128  # query rows of a tile: 64 for each group of warps
KEYS = 128  # keys of a tile, unless blocks are smaller
STAGES = 2  # tiles of keys, and as many of values, in shared memory


def why_not(problem: Problem, plan: Plan) -> str | None:
    p, blocks = problem, plan.blocks
    if blocks is None:
        return "it attends to block lists, and this plan has none: take flash or triton"
    if plan.queries or plan.keys:
        return "it does not read through token indices: gather first"
    if p.sliding_window is not None:
        return "it does not support the problem's sliding window: take triton"
    if p.q.shape[3] != p.v.shape[3]:
        return f"head dims of keys and values differ, {p.q.shape[3]} and {p.v.shape[3]}: take triton"
    if blocks.size[0] % ROWS or blocks.size[1] % 64:
        return (
            f"block size {blocks.size}: query blocks must be a multiple of {ROWS} tokens and key blocks of 64; take "
            "triton"
        )
    return why_not_here(p.q)


def attend(problem: Problem, plan: Plan) -> Output:
    p, blocks = problem, plan.blocks
    assert blocks
    (B, H, Q, D), G = p.q.shape, p.k.shape[1]
    q, k, v = (readable(x) for x in (p.q, p.k, p.v))
    reach, indices = p.reach(), blocks.indices.contiguous()
    whole, part = seen_blocks(blocks, reach)
    (heads, I), (list_heads, width) = whole.shape[1:], (indices.shape[1], indices.shape[3])
    n = min(KEYS, blocks.size[1] & -blocks.size[1])
    out = Output(q.new_empty(B, Q, H, D).transpose(1, 2), q.new_empty(B, H, Q, dtype=torch.float32))
    n_rows = -(-Q // ROWS)
    tiles = B * H * n_rows
    launched = min(tiles, programs(q.device))
    box = [1, 1, n, D]
    _attend[(launched,)](
        described(q, [1, 1, ROWS // 2, D]), described(k, box), described(v, box),
        torch.zeros(1, dtype=torch.int32, device=q.device), reach, whole, part, indices, out.o, out.lse,
        *reach.stride(), *out.o.stride()[:3], p.scale / math.log(2), tiles, n_rows, H, H // G, Q, I, width,
        reach.shape[1], heads, list_heads, blocks.size[0] // ROWS, blocks.size[1], N=n, D=D, PER=blocks.size[1] // n,
        STAGES=STAGES, COMPUTING=COMPUTING, COPYING=COPYING, num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return out


@gluon.jit
def _place(tile, n_rows, H, R):
    """Return a tile's sequence, head and number of rows' tile within the head: the last rows of a group come first."""
    group, rest = tile // (n_rows * R), tile % (n_rows * R)
    groups = H // R
    return group // groups, group % groups * R + rest % R, n_rows - 1 - rest // R


@gluon.jit
def _write(room, number):
    """Leave a number for the warps that compute."""
    room.store(gl.full([1], 0, gl.int32, gl.BlockedLayout([1], [32], [1], [0])) + number)


@gluon.jit
def _read(room):
    """Return the number that the copying warp left."""
    return gl.max(room.load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@gluon.jit
def _copy(
    q, k, v, counter, whole, part, indices, bars, room, tiles, n_rows, H, R, I, width, heads, list_heads, per_block,
    block_k, N: gl.constexpr, PER: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy, in the one warp that copies, the rows of a tile, then the keys and values of its list.

    The warps that compute read from shared memory which tile it is, how long its list is and where its keys begin: so
    they wait for no list.
    """
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    q_room, k_room, v_room, tile_room, key_room = room
    step, turn, tile = 0, 0, gl.program_id(0)
    while tile < tiles:
        b, h, row = _place(tile, n_rows, H, R)
        i = row // per_block
        line = (b * heads + h * heads // H) * I + i
        n_whole = gl.load(whole + line) * PER
        n = n_whole + gl.load(part + line) * PER
        at = indices + ((b * list_heads + h * list_heads // H) * I + i).to(gl.int64) * width
        start = gl.load(at, mask=n > 0, other=0) * block_k
        u = turn % 2
        mbarrier.wait(q_empty.index(u), ((turn // 2) & 1) ^ 1)
        _write(tile_room.index(u * 3), tile)
        _write(tile_room.index(u * 3 + 1), n_whole)
        _write(tile_room.index(u * 3 + 2), n)
        full = q_full.index(u)
        mbarrier.expect(full, 2 * q.block_type.nbytes)
        tma.async_copy_global_to_shared(q, [b, h, row * 128, 0], full, q_room.index(u * 2))
        tma.async_copy_global_to_shared(q, [b, h, row * 128 + 64, 0], full, q_room.index(u * 2 + 1))
        for t in range(n):
            s, phase, key = step % STAGES, ((step // STAGES) & 1) ^ 1, start + t % PER * N
            # load the next block's index a step ahead, so that no copy waits for it
            start = gl.load(at + (t + 1) // PER, mask=t + 1 < n, other=0) * block_k
            mbarrier.wait(k_empty.index(s), phase)
            _write(key_room.index(s), key)
            mbarrier.expect(k_full.index(s), k.block_type.nbytes)
            tma.async_copy_global_to_shared(k, [b, h // R, key, 0], k_full.index(s), k_room.index(s))
            mbarrier.wait(v_empty.index(s), phase)
            mbarrier.expect(v_full.index(s), v.block_type.nbytes)
            tma.async_copy_global_to_shared(v, [b, h // R, key, 0], v_full.index(s), v_room.index(s))
            step += 1
        turn += 1
        tile = gl.atomic_add(counter, 1, sem="relaxed") + gl.num_programs(0)
    u = turn % 2
    mbarrier.wait(q_empty.index(u), ((turn // 2) & 1) ^ 1)
    _write(tile_room.index(u * 3), tile)  # no tile: the others stop
    mbarrier.arrive(q_full.index(u), count=1)


@gluon.jit
def step_of(
    q, weights, top, total, acc, bars, room, step, key, low, high, scale, more,
    N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """Compute the scores of the tile of keys `key` [N] while the weights of the last tile are multiplied by its values.

    The caller has waited for the tile's barrier. If it is WHOLE, every row sees all of it. Otherwise each row sees the
    keys before `high`, and, unless `low` is None, from `low` on.
    """
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    k_room, v_room = room[1], room[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    before, last = step % STAGES, (step // STAGES) & 1
    step += 1
    s = step % STAGES
    x = gl.zeros([64, N], gl.float32, SCORES)
    x = warpgroup_mma(q, k_room.index(s).reshape([N, D]).permute((1, 0)), x, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before), last)
    acc = warpgroup_mma(weights, v_room.index(before).reshape([N, D]), acc, is_async=True)
    x = warpgroup_mma_wait(1, deps=(x,))
    mbarrier.arrive(k_empty.index(s), count=1)
    if not WHOLE:
        seen = key[None, :] < high[:, None]
        if low is not None:
            seen = seen & (key[None, :] >= low[:, None])
        x = gl.where(seen, x, -float("inf"))
    new = gl.maximum(top, gl.max(x, 1) * scale)
    safe = new
    if not WHOLE:
        safe = gl.where(new == -float("inf"), 0.0, new)  # for a row that has seen no key yet
    x = gl.exp2(x * scale - safe[:, None])
    decay = gl.exp2(top - safe)
    total = total * decay + gl.sum(x, 1)
    weights = gl.convert_layout(x.to(k_room.dtype), gl.DotOperandLayout(0, OUT, 2))
    # wait here: the compiler moves a wait for the tensor cores up to the last wait for a barrier
    mbarrier.wait(k_full.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1, pred=more)
    acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
    mbarrier.arrive(v_empty.index(before), count=1)
    return step, weights, new, total, acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]


@gluon.jit
def _rows(
    bars, room, reach, o, lse, reach_b, reach_h, reach_l, o_b, o_h, o_l, scale, tiles, n_rows, H, R, Q, reach_heads,
    GROUP: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Compute, in one group of four warps, its 64 rows of every tile."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    q_room, k_room, v_room, tile_room, key_room = room
    DTYPE: gl.constexpr = q_room.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    key = gl.arange(0, N, layout=gl.SliceLayout(0, SCORES))
    stored = gl.arange(0, 64, layout=gl.SliceLayout(1, STORED))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, STORED))
    step, turn = 0, 0
    mbarrier.wait(q_full.index(0), 0)
    tile = _read(tile_room.index(0))
    while tile < tiles:
        b, h, at = _place(tile, n_rows, H, R)
        at, u = at * 128 + GROUP * 64, turn % 2
        n_whole, n = _read(tile_room.index(u * 3 + 1)), _read(tile_room.index(u * 3 + 2))
        of = reach + b * reach_b + h * reach_heads // H * reach_h
        seen = gl.load(of + (at + row) * reach_l, mask=at + row < Q, other=0).to(gl.int32)
        q = q_room.index(u * 2 + GROUP).reshape([64, D])
        top = gl.full([64], -float("inf"), gl.float32, gl.SliceLayout(1, SCORES))
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        acc = gl.zeros([64, D], gl.float32, OUT)
        if n > 0:
            s = step % STAGES
            mbarrier.wait(k_full.index(s), (step // STAGES) & 1)
            slot = _read(key_room.index(s)) + key
            x = gl.zeros([64, N], gl.float32, SCORES)
            x = warpgroup_mma(q, k_room.index(s).reshape([N, D]).permute((1, 0)), x, use_acc=False, is_async=True)
            x = warpgroup_mma_wait(0, deps=(x,))
            mbarrier.arrive(k_empty.index(s), count=1)
            x = gl.where(slot[None, :] < seen[:, None], x, -float("inf"))
            top = gl.max(x, 1) * scale
            x = gl.exp2(x * scale - gl.where(top == -float("inf"), 0.0, top)[:, None])
            total = gl.sum(x, 1)
            weights = gl.convert_layout(x.to(DTYPE), gl.DotOperandLayout(0, OUT, 2))
            mbarrier.wait(k_full.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1, pred=n > 1)
            for t in range(1, n_whole):
                step, weights, top, total, acc = step_of(
                    q, weights, top, total, acc, bars, room, step, key, None, seen, scale, t + 1 < n,
                    N, D, STAGES, True,
                )  # fmt: skip
            for t in range(gl.maximum(n_whole, 1), n):
                slot = _read(key_room.index((step + 1) % STAGES)) + key
                step, weights, top, total, acc = step_of(
                    q, weights, top, total, acc, bars, room, step, slot, None, seen, scale, t + 1 < n,
                    N, D, STAGES, False,
                )  # fmt: skip
            s = step % STAGES
            mbarrier.wait(v_full.index(s), (step // STAGES) & 1)
            acc = warpgroup_mma(weights, v_room.index(s).reshape([N, D]), acc)
            mbarrier.arrive(v_empty.index(s), count=1)
            step += 1
        mbarrier.arrive(q_empty.index(u), count=1)
        turn += 1
        empty = (total == 0.0) | (seen == 0)
        total = gl.where(empty, 1.0, total)
        # a row that sees nothing: its sum may be of keys that it does not see
        share = gl.convert_layout(gl.where(empty, 0.0, 1.0 / total), gl.SliceLayout(1, OUT))
        y = gl.convert_layout((acc * share[:, None]).to(DTYPE), STORED)
        there = o + b.to(gl.int64) * o_b + h.to(gl.int64) * o_h + (at + stored).to(gl.int64) * o_l
        gl.store(there[:, None] + d[None, :], y, mask=(at + stored < Q)[:, None])
        log = gl.where(empty, -float("inf"), (top + gl.log2(total)) * LN2)
        gl.store(lse + (b * H + h).to(gl.int64) * Q + at + row, log, mask=at + row < Q)
        mbarrier.wait(q_full.index(turn % 2), (turn // 2) & 1)
        tile = _read(tile_room.index(turn % 2 * 3))


@gluon.jit
def barriers(STAGES: gl.constexpr):
    """Return barriers: full and empty for two tiles of rows, and for STAGES tiles of keys and of values."""
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    return q_full, q_empty, k_full, k_empty, v_full, v_empty


@gluon.jit
def _attend(
    q, k, v, counter, reach, whole, part, indices, o, lse, reach_b, reach_h, reach_l, o_b, o_h, o_l, scale, tiles,
    n_rows, H, R, Q, I, width, reach_heads, heads, list_heads, per_block, block_k,
    N: gl.constexpr, D: gl.constexpr, PER: gl.constexpr, STAGES: gl.constexpr, COMPUTING: gl.constexpr,
    COPYING: gl.constexpr,
):  # fmt: skip
    room = (
        gl.allocate_shared_memory(q.dtype, [4, 1, 1, 64, D], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, N, D], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, N, D], v.layout),
        gl.allocate_shared_memory(gl.int32, [6, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])),
    )
    bars = barriers(STAGES)
    gl.warp_specialize(
        [
            (_rows, (bars, room, reach, o, lse, reach_b, reach_h, reach_l, o_b, o_h, o_l, scale, tiles, n_rows, H, R, Q,
                     reach_heads, 0, N, D, STAGES)),
            (_rows, (bars, room, reach, o, lse, reach_b, reach_h, reach_l, o_b, o_h, o_l, scale, tiles, n_rows, H, R, Q,
                     reach_heads, 1, N, D, STAGES)),
            (_copy, (q, k, v, counter, whole, part, indices, bars, room, tiles, n_rows, H, R, I, width, heads,
                     list_heads, per_block, block_k, N, PER, STAGES)),
        ],
        [4, 1],
        [COMPUTING, COPYING],
    )  # fmt: skip
