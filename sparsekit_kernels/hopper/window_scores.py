"""The attention that the last queries give each key, in two passes over the keys.

The first pass writes each row's largest score and sum of exponentials per 256 keys. A small kernel joins them. The
second pass sums probabilities over the rows. No two programs add to the same sum, so each run returns the same bits.
In the first pass a program holds keys, and its two groups of warps read 64 rows of queries per step. In the second
pass each group holds 64 keys in registers, so that it sums over rows within a thread. The two groups take turns at the
tensor cores: one computes its exponentials while the other computes its scores.
"""

import math

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparsekit.ops.window_scores import Scores
from sparsekit.problem import Problem

from . import COMPUTING, COPYING, REGISTERS, described, programs, readable, why_not_here

LEAST = 128  # rows of a step; fewer queries leave tensor cores idle
HELD = 256  # keys of a program in the first pass
STAGES = 3, 4  # steps whose rows are in shared memory, in the first and second pass


def why_not(problem: Problem, voters: int, diagonals: bool = False) -> str | None:
    p = problem
    if diagonals:
        return "it has no sums by distance: take triton"
    if min(voters, p.q.shape[2]) < LEAST:
        return f"{min(voters, p.q.shape[2])} queries are fewer than {LEAST}: take triton"
    if p.sliding_window is not None or not (p.full and (p.queries_last or not p.causal)):
        return "it reads no positions: queries must be the last keys, without padding and window; take triton"
    return why_not_here(p.q)


def window_scores(problem: Problem, voters: int, diagonals: bool = False) -> Scores:
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    q, k, W, R, n = readable(p.q), readable(p.k), min(voters, Q), H // G, programs(p.q.device)
    scale, causal = p.scale / math.log(2), int(p.causal)
    steps = -(-W // LEAST)  # steps of a head
    lines = B * H * steps * LEAST  # room for so many rows
    launch = dict(D=D, COMPUTING=COMPUTING, COPYING=COPYING, num_warps=4, maxnreg=REGISTERS)

    tiles = -(-K // HELD)
    top, total = q.new_empty(2, tiles, lines, dtype=torch.float32)
    parts = split(tiles * B * G, R, n)
    items = tiles * B * G * parts
    _exponentials[(min(items, n),)](
        described(q, [1, 1, 64, D]), described(k, [1, 1, HELD, D]), top, total, items, tiles, parts, R // parts, G, R,
        Q, K, W, steps, lines, scale, causal, N=HELD, STAGES=STAGES[0], **launch,
    )  # fmt: skip
    log = q.new_empty(lines, dtype=torch.float32)
    _join[(lines // 16,)](top, total, log, tiles, lines, W, steps * LEAST, N=16, T=64)

    scores = q.new_empty(1, B, H, K, dtype=torch.float32)
    tiles = -(-K // 128)
    parts = split(tiles * B * G, R, n)
    items = tiles * B * G * parts
    _probabilities[(min(items, n),)](
        described(q, [1, 1, LEAST, D]), described(k, [1, 1, 64, D]), described(log, [LEAST]), scores, items, tiles,
        parts, R // parts, G, R, Q, K, W, steps, scale, causal, N=LEAST, STAGES=STAGES[1], **launch,
    )  # fmt: skip
    return scores


def split(items: int, heads: int, programs: int) -> int:
    """Return the number of parts to split the heads of an item into: the fewest that give each program two items."""
    return next(n for n in range(1, heads + 1) if heads % n == 0 and (items * n >= 2 * programs or n == heads))


@gluon.jit
def _place(item, tiles, parts, HP, G, R):
    """Return an item's tile of keys, sequence, group and first head."""
    part, rest = item % parts, item // parts
    tile, rest = rest % tiles, rest // tiles
    return tile, rest // G, rest % G, rest % G * R + part * HP


@gluon.jit
def _barriers(STAGES: gl.constexpr):
    """Return barriers: `full` and `empty` per stage of rows, the same per tile of keys, and whose turn it is."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()
    return full, empty, k_full, k_empty, turns


@gluon.jit
def _copy(
    q, k, log, bars, room, items, tiles, parts, HP, G, R, Q, W, steps,
    KEYS: gl.constexpr, BOXES: gl.constexpr, ROWS: gl.constexpr, HALVES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy, in one warp, BOXES boxes of KEYS keys per item, HALVES boxes of ROWS rows per step, and their logs."""
    full, empty, k_full, k_empty, turns = bars
    q_room, k_room, log_room = room
    step, turn = 0, 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, b, g, head = _place(item, tiles, parts, HP, G, R)
        u = turn % 2
        mbarrier.wait(k_empty.index(u), ((turn // 2) & 1) ^ 1)
        mbarrier.expect(k_full.index(u), BOXES * k.block_type.nbytes)
        for j in gl.static_range(BOXES):
            key = (tile * BOXES + j) * KEYS
            tma.async_copy_global_to_shared(k, [b, g, key, 0], k_full.index(u), k_room.index(u * BOXES + j))
        for i in range(HP * steps):
            s, h, row = step % STAGES, head + i // steps, i % steps * (ROWS * HALVES)
            mbarrier.wait(empty.index(s), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), HALVES * q.block_type.nbytes + (0 if log is None else ROWS * 4))
            for j in gl.static_range(HALVES):
                at = Q - W + row + j * ROWS
                tma.async_copy_global_to_shared(q, [b, h, at, 0], full.index(s), q_room.index(s * HALVES + j))
            if log is not None:
                line = (b * G * R + h) * (steps * ROWS) + row
                tma.async_copy_global_to_shared(log, [line], full.index(s), log_room.index(s))
            step += 1
        turn += 1


@gluon.jit
def _largest_and_sum(x, key, seen, scale, WHOLE: gl.constexpr):
    """Return each row's largest score (base 2) over a tile of keys, and its sum of exponentials below that."""
    if not WHOLE:
        x = gl.where(key[None, :] < seen[:, None], x, -float("inf"))
    most = gl.max(x, 1) * scale
    safe = gl.where(most == -float("inf"), 0.0, most)  # a row that sees no key of the tile
    return most, gl.sum(gl.exp2(x * scale - safe[:, None]), 1)


@gluon.jit
def _exponentials_of(
    bars, room, top, total, items, tiles, parts, HP, G, R, K, W, steps, lines, scale, causal,
    GROUP: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    full, empty, k_full, k_empty, turns = bars
    q_room, k_room, log_room = room
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    row = GROUP * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    slot = gl.arange(0, N, layout=gl.SliceLayout(0, SCORES))
    zero = gl.zeros([64, N], gl.float32, SCORES)
    step, turn = 0, 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, b, g, head = _place(item, tiles, parts, HP, G, R)
        u = turn % 2
        mbarrier.wait(k_full.index(u), (turn // 2) & 1)
        keys, key = k_room.index(u).reshape([N, D]).permute((1, 0)), tile * N + slot
        whole = (tile + 1) * N <= gl.minimum(K - causal * (W - 1), K)  # every row sees every key
        line = tile.to(gl.int64) * lines + (b * G * R + head) * (steps * 128) + row
        for i in range(HP * steps):
            s = step % STAGES
            mbarrier.wait(full.index(s), (step // STAGES) & 1)
            x = warpgroup_mma(q_room.index(s * 2 + GROUP).reshape([64, D]), keys, zero, use_acc=False)
            mbarrier.arrive(empty.index(s), count=1)
            step += 1
            if whole:
                most, sums = _largest_and_sum(x, key, row, scale, True)
            else:
                seen = gl.minimum(K - causal * (W - 1 - i % steps * 128 - row), K)
                most, sums = _largest_and_sum(x, key, seen, scale, False)
            gl.store(top + line + i * 128, most)
            gl.store(total + line + i * 128, sums)
        mbarrier.arrive(k_empty.index(u), count=1)
        turn += 1


@gluon.jit
def _exponentials(
    q, k, top, total, items, tiles, parts, HP, G, R, Q, K, W, steps, lines, scale, causal,
    N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, COMPUTING: gl.constexpr, COPYING: gl.constexpr,
):  # fmt: skip
    """Write each row's largest score (base 2) over each tile of N keys, and its sum of exponentials below that."""
    q_room = gl.allocate_shared_memory(q.dtype, [STAGES * 2, 1, 1, 64, D], q.layout)
    k_room = gl.allocate_shared_memory(k.dtype, [2, 1, 1, N, D], k.layout)
    bars, room = _barriers(STAGES), (q_room, k_room, None)
    gl.warp_specialize(
        [
            (_exponentials_of, (bars, room, top, total, items, tiles, parts, HP, G, R, K, W, steps, lines, scale,
                                causal, 0, N, D, STAGES)),
            (_exponentials_of, (bars, room, top, total, items, tiles, parts, HP, G, R, K, W, steps, lines, scale,
                                causal, 1, N, D, STAGES)),
            (_copy, (q, k, None, bars, room, items, tiles, parts, HP, G, R, Q, W, steps, N, 1, 64, 2, STAGES)),
        ],
        [4, 1],
        [COMPUTING, COPYING],
    )  # fmt: skip


@triton.jit
def _join(top, total, log, tiles, lines, W, room, N: tl.constexpr, T: tl.constexpr):
    """Write each row's log (base 2) of (its sum of exponentials over all keys x number of rows)."""
    lane, tile = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, T)
    most = tl.full([T, N], -float("inf"), tl.float32)
    sums = tl.zeros([T, N], tl.float32)
    for t in range(0, tiles, T):
        at, here = (t + tile).to(tl.int64)[:, None] * lines + lane, (t + tile < tiles)[:, None]
        x, y = tl.load(top + at, mask=here, other=-float("inf")), tl.load(total + at, mask=here, other=0.0)
        new = tl.maximum(most, x)
        safe = tl.where(new == -float("inf"), 0.0, new)
        sums, most = sums * tl.exp2(most - safe) + y * tl.exp2(x - safe), new
    highest = tl.max(most, 0)
    highest = tl.where(highest == -float("inf"), 0.0, highest)
    whole = tl.sum(sums * tl.exp2(most - highest[None, :]), 0) * W
    # false for a row that sees no key, for one with NaN or inf among its scores, and for a lane without a row
    good = (whole > 0.0) & (whole < float("inf")) & (lane % room < W)
    # a log of inf: such a row gives nothing to any key
    tl.store(log + lane, tl.where(good, highest + tl.log2(tl.where(good, whole, 1.0)), float("inf")))


@gluon.jit
def _probabilities_of(
    bars, room, scores, items, tiles, parts, HP, G, R, K, W, steps, scale, causal,
    GROUP: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    full, empty, k_full, k_empty, turns = bars
    q_room, k_room, log_room = room
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    slot = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    row = gl.arange(0, N, layout=gl.SliceLayout(0, SCORES))
    zero = gl.zeros([64, N], gl.float32, SCORES)
    step, turn = gl.to_tensor(0), 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, b, g, head = _place(item, tiles, parts, HP, G, R)
        u = turn % 2
        mbarrier.wait(k_full.index(u), (turn // 2) & 1)
        keys = k_room.index(u * 2 + GROUP).reshape([64, D]).load(gl.DotOperandLayout(0, SCORES, 2))
        mbarrier.arrive(k_empty.index(u), count=1)
        turn += 1
        start = tile * 128 + GROUP * 64
        key = start + slot
        whole = start + 64 <= gl.minimum(K - causal * (W - 1), K)  # every row sees every key
        sums = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
        for i in range(HP * steps):
            s = step % STAGES
            mbarrier.wait(full.index(s), (step // STAGES) & 1)
            logs = log_room.index(s).load(gl.SliceLayout(0, SCORES))
            mbarrier.wait(turns.index(GROUP), (step & 1) ^ (1 - GROUP))
            rows = q_room.index(s).reshape([N, D]).permute((1, 0))
            x = warpgroup_mma(keys, rows, zero, use_acc=False, is_async=True)
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
            x = warpgroup_mma_wait(0, deps=(x,))
            mbarrier.arrive(empty.index(s), count=1)
            step += 1
            x = gl.maximum(gl.exp2(x * scale - logs[None, :]), 0.0)  # NaN to 0: inf - inf in a row that gives nothing
            if not whole:
                seen = gl.minimum(K - causal * (W - 1 - i % steps * N - row), K)
                x = gl.where(key[:, None] < seen[None, :], x, 0.0)
            sums += gl.sum(x, 1)
            done = i % steps == steps - 1
            line = (b * G * R + head + i // steps).to(gl.int64) * K
            gl.store(scores + line + key, sums, mask=(key < K) & done)
            sums = gl.where(done, 0.0, sums)


@gluon.jit
def _probabilities(
    q, k, log, scores, items, tiles, parts, HP, G, R, Q, K, W, steps, scale, causal,
    N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, COMPUTING: gl.constexpr, COPYING: gl.constexpr,
):  # fmt: skip
    """Write each key's sum of probabilities over the rows, for each head, N rows per step."""
    q_room = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, N, D], q.layout)
    k_room = gl.allocate_shared_memory(k.dtype, [4, 1, 1, 64, D], k.layout)
    log_room = gl.allocate_shared_memory(gl.float32, [STAGES, N], log.layout)
    bars, room = _barriers(STAGES), (q_room, k_room, log_room)
    gl.warp_specialize(
        [
            (_probabilities_of, (bars, room, scores, items, tiles, parts, HP, G, R, K, W, steps, scale, causal, 0, N,
                                 D, STAGES)),
            (_probabilities_of, (bars, room, scores, items, tiles, parts, HP, G, R, K, W, steps, scale, causal, 1, N,
                                 D, STAGES)),
            (_copy, (q, k, log, bars, room, items, tiles, parts, HP, G, R, Q, W, steps, 64, 2, N, 1, STAGES)),
        ],
        [4, 1],
        [COMPUTING, COPYING],
    )  # fmt: skip
