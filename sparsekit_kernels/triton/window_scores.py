"""The attention that the last queries give each key, and each distance, in two passes over the keys.

A program owns a tile of keys and computes every row of every query head of their group, so each pass reads K from
memory once. The first pass writes each row's largest score and sum of exponentials per tile. A small kernel joins the
tiles. The second pass sums probabilities down the columns. No two programs add to the same sum: there are no atomics,
and each run returns the same bits.
Distances: key minus row is constant along a diagonal. Step r of FOLD steps reads the rows a FOLD + r, for all a, and
the keys shifted by r: key minus row is the same in each step, so their probabilities add up in registers. A sum along
the diagonals of one tile would send each probability to another thread. These sums, W / FOLD per key, go through
memory to a last kernel. With a sliding window the keys before it are left out.
A first kernel copies the rows in the order in which the steps read them. The passes then read contiguous rows, and
spend no registers on padding, heads or strides.
"""

import math

import torch
import triton
import triton.language as tl

from sparsekit.ops.window_scores import Scores, at_length, within_sight
from sparsekit.problem import Problem, to_heads

from . import target, tile, why_not_here

FOLD = 8  # steps; twice as many halve the sums that go through memory, but read K twice as often, from the caches

# per target and pass, for head dims up to 128, 256: most rows and keys of a tile, warps, stages; no kernel spills
TILES = {
    "sm_80": {
        "exponentials": ((128, 128, 8, 2), (64, 64, 8, 2)),
        "columns": ((128, 128, 8, 2), (64, 64, 8, 2)),
        "diagonals": ((64, 64, 8, 2), (64, 64, 8, 2)),
    },
    "sm_90": {
        "exponentials": ((64, 128, 4, 2), (64, 64, 8, 2)),
        "columns": ((64, 128, 8, 2), (64, 64, 8, 2)),
        "diagonals": ((64, 128, 4, 2), (64, 64, 8, 2)),
    },
    "sm_100": {
        "exponentials": ((128, 64, 8, 2), (64, 64, 8, 2)),
        "columns": ((128, 64, 8, 2), (64, 32, 8, 2)),
        "diagonals": ((128, 64, 8, 2), (64, 64, 8, 2)),
    },
    "gfx942": {
        "exponentials": ((64, 64, 8, 2), (32, 32, 4, 2)),
        "columns": ((64, 64, 8, 2), (32, 32, 4, 2)),
        "diagonals": ((64, 64, 8, 2), (32, 32, 4, 2)),
    },
    "float32": {  # on any target
        "exponentials": ((32, 32, 4, 2), (32, 32, 4, 2)),
        "columns": ((32, 32, 4, 2), (32, 32, 4, 2)),
        "diagonals": ((32, 16, 4, 2), (32, 32, 4, 2)),
    },
}


def why_not(problem: Problem, voters: int, diagonals: bool = False) -> str | None:
    if problem.q.shape[3] > 256:
        return f"head dim {problem.q.shape[3]} is larger than 256"
    return why_not_here(problem.q)


def window_scores(problem: Problem, voters: int, diagonals: bool = False) -> Scores:
    return at_length(_scores(within_sight(problem, voters), voters, diagonals), problem.k.shape[2])


def _scores(problem: Problem, voters: int, diagonals: bool) -> Scores:
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    W, R, step = min(voters, Q), FOLD if diagonals else 1, "diagonals" if diagonals else "columns"
    reach, sure = None, K - (W - 1) * p.causal  # keys that every row sees; the usual problem launches no torch op
    if not p.full or (p.causal and not p.queries_last):
        reach, sure = p.reach().contiguous(), 0
    start = None if p.sliding_window is None else to_heads(p.start(), H).contiguous()
    real, length = (None, None) if p.full else (to_heads(n, H).contiguous() for n in p.lengths())
    q, scale = p.q, p.scale / math.log(2)
    wide, D_TILE = torch.promote_types(q.dtype, torch.float32), tile(D, 256)
    WIDE = tl.float64 if wide == torch.float64 else tl.float32

    most, N, launch = tiles(D, q.dtype.itemsize, target(q.device), step)
    HEADS, ROWS = split(H // G, -(-W // R), most)
    per_head = -(-W // (R * ROWS))
    n_rows = -(-H // (G * HEADS)) * per_head  # tiles of rows per step
    lanes = n_rows * R * HEADS * ROWS  # room for so many rows of a group
    order = dict(R=R, HEADS=HEADS, ROWS=ROWS)
    rows = q.new_empty(B * G, lanes, D_TILE)
    last, number = q.new_empty(2, B * G, lanes, dtype=torch.int32)
    first = None if start is None else torch.empty_like(last)
    _rows[(lanes // 16, B * G)](
        q, reach, start, real, rows, first, last, number, *q.stride(), int(p.causal),
        1 if reach is None else reach.shape[1], H, G, Q, K, W, per_head, N=16, D=D, D_TILE=D_TILE, **order,
    )  # fmt: skip
    lowest = None if first is None else first.amin(1)  # the first key that any row of a group sees
    empty = q.new_empty if first is None else q.new_zeros  # zeros, for entries that no program writes then

    M1, N1, launch1 = tiles(D, q.dtype.itemsize, target(q.device), "exponentials")
    n_keys = -(-K // N1)
    top, total = empty(2, n_keys, B * G * lanes, dtype=wide)
    if first is not None:
        top.fill_(-math.inf)
    _exponentials[(n_keys, B * G)](
        rows, lowest, first, last, p.k, top, total, *p.k.stride(), scale, sure, G, K, lanes, M=math.gcd(lanes, M1),
        N=N1, D=D, D_TILE=D_TILE, WIDE=WIDE, **launch1,
    )  # fmt: skip
    log = q.new_empty(B * G * lanes, dtype=wide)
    _join[(B * G * lanes // 8,)](top, total, number, log, n_keys, B * G * lanes, N=8, T=128, WIDE=WIDE)

    n_keys = -(-(K + R - 1) // N)
    width = n_keys * N if diagonals else K
    parts = empty(B, G, n_rows, R, HEADS, width, dtype=wide)
    folded = empty(B, G, n_rows, HEADS * ROWS, width, dtype=wide) if diagonals else None
    _probabilities[(n_keys, B * G)](
        rows, lowest, first, last, log, p.k, parts, folded, *p.k.stride(), scale, sure, G, K, n_rows, N=N, D=D,
        D_TILE=D_TILE, WIDE=WIDE, **order, **launch,
    )  # fmt: skip
    if per_head * R == 1:
        return parts.view(B, G, -1, K)[:, :, : H // G].reshape(1, B, H, K)
    scores = q.new_empty(1 + diagonals, B, H, K, dtype=wide)
    _sums[(-(-K // 1024), B * H)](
        parts, folded, length, scores[0], scores[-1], H, G, K, W, per_head, n_rows, width, N=1024, WIDE=WIDE, **order
    )
    return scores


def tiles(head_dim: int, itemsize: int, target: str, step: str) -> tuple[int, int, dict[str, int]]:
    """Return the largest numbers of rows and keys of a tile, and its launch options."""
    M, N, warps, stages = TILES["float32" if itemsize > 2 else target][step][head_dim > 128]
    return M, N, dict(num_warps=warps, num_stages=stages)


def split(heads: int, rows: int, most: int) -> tuple[int, int]:
    """Return the heads of a tile and the rows of each: all rows of one head come before a second head."""
    rows = triton.next_power_of_2(rows)
    M = tile(triton.next_power_of_2(heads) * rows, most)
    return M // min(rows, M), min(rows, M)


@triton.jit
def _rows(
    q, reach, start, real, rows, first, last, number, q_b, q_h, q_l, q_d, causal, reach_heads, H, G, Q, K, W, per_head,
    R: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr,
):  # fmt: skip
    """Copy rows in the order of the second pass: by tile, then by its R steps, then by head, then every R-th row.

    With each row, write where the keys that it sees begin and end, and the number of rows of its head: 0 if the lane
    has no row.
    """
    b, g = tl.program_id(1) // G, tl.program_id(1) % G
    lane = tl.program_id(0) * N + tl.arange(0, N)
    m, r, x = lane % (HEADS * ROWS), lane // (HEADS * ROWS) % R, lane // (HEADS * ROWS * R)
    h, row = x // per_head * HEADS + m // ROWS, (x % per_head * ROWS + m % ROWS) * R + r
    inside, head = (h < H // G) & (row < W), g * (H // G) + h
    n = tl.full([N], Q, tl.int32)
    if real is not None:
        n = tl.load(real + b * H + head, mask=inside, other=0).to(tl.int32)
    row += n - W
    inside = inside & (row >= 0)
    if reach is None:
        seen = K - causal * (Q - 1 - row)
    else:
        seen = tl.load(reach + (b * reach_heads + head * reach_heads // H).to(tl.int64) * Q + row, mask=inside)
    at, d = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * N + lane, tl.arange(0, D_TILE)
    tl.store(last + at, tl.where(inside, seen, 0))
    if start is not None:
        begin = tl.load(start + (b * H + head).to(tl.int64) * Q + row, mask=inside, other=K).to(tl.int32)
        tl.store(first + at, begin)
    tl.store(number + at, tl.where(inside, tl.minimum(n, W), 0))
    near = q + b.to(tl.int64) * q_b + head.to(tl.int64) * q_h + row.to(tl.int64) * q_l
    found = tl.load(near[:, None] + d * q_d, mask=inside[:, None] & (d < D), other=0.0)
    tl.store(rows + at[:, None] * D_TILE + d, found)


@triton.jit
def _keys(k, k_b, k_h, k_l, k_d, slot, G, K, D: tl.constexpr, D_TILE: tl.constexpr):
    """Load a tile of keys, [N, D], of the program's group; a slot without a key gets any key."""
    b, g, d = tl.program_id(1) // G, tl.program_id(1) % G, tl.arange(0, D_TILE)
    near = k + b.to(tl.int64) * k_b + g.to(tl.int64) * k_h
    near += tl.minimum(tl.maximum(slot, 0), K - 1).to(tl.int64)[:, None] * k_l
    return tl.load(near + d[None, :] * k_d, mask=(d < D)[None, :], other=0.0)


@triton.jit
def _exponentials(
    rows, lowest, first, last, k, top, total, k_b, k_h, k_l, k_d, scale, sure, G, K, lanes,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write each row's largest score (base 2) over one tile of keys, and its sum of exponentials below that."""
    end = (tl.program_id(0) + 1) * N
    slot = end - N + tl.arange(0, N)
    keys = _keys(k, k_b, k_h, k_l, k_d, slot, G, K, D, D_TILE)
    at, m, d = tl.program_id(1).to(tl.int64) * lanes, tl.arange(0, M), tl.arange(0, D_TILE)
    mine = tl.program_id(0).to(tl.int64) * tl.num_programs(1) * lanes + at
    places = lanes
    if first is not None:
        places = tl.where(end > tl.load(lowest + tl.program_id(1)), lanes, 0)
    for x in range(0, places, M):
        q = tl.load(rows + (at + x) * D_TILE + m[:, None] * D_TILE + d)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee", out_dtype=WIDE)  # [M, N]
        if end > sure:
            scores = tl.where(slot < tl.load(last + at + x + m)[:, None], scores, -float("inf"))
        if first is not None:
            scores = tl.where(slot >= tl.load(first + at + x + m)[:, None], scores, -float("inf"))
        most = tl.max(scores, 1) * scale
        safe = tl.where(most == -float("inf"), 0.0, most)  # for a row that sees no key of the tile
        tl.store(top + mine + x + m, most)
        tl.store(total + mine + x + m, tl.sum(tl.exp2(scores * scale - safe[:, None]), 1))


@triton.jit
def _join(top, total, number, log, n_keys, lanes, N: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr):
    """Write each row's log (base 2) of (its sum of exponentials over all keys x number of rows)."""
    lane, tile = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, T)
    most = tl.full([T, N], -float("inf"), WIDE)
    for t in range(0, n_keys, T):
        at, here = (t + tile).to(tl.int64)[:, None] * lanes + lane, (t + tile < n_keys)[:, None]
        most = tl.maximum(most, tl.load(top + at, mask=here, other=-float("inf")))
    highest = tl.max(most, 0)
    highest = tl.where(highest == -float("inf"), 0.0, highest)
    sums = tl.zeros([T, N], WIDE)
    for t in range(0, n_keys, T):
        at, here = (t + tile).to(tl.int64)[:, None] * lanes + lane, (t + tile < n_keys)[:, None]
        decay = tl.exp2(tl.load(top + at, mask=here, other=-float("inf")) - highest[None, :])
        sums += decay * tl.load(total + at, mask=here, other=0.0)
    whole = tl.sum(sums, 0) * tl.load(number + lane)
    good = (whole > 0.0) & (whole < float("inf"))  # false for a row without keys, or with NaN or inf
    # a log of inf: such a row gives nothing to any key
    tl.store(log + lane, tl.where(good, highest + tl.log2(tl.where(good, whole, 1.0)), float("inf")))


@triton.jit
def _probabilities(
    rows, lowest, first, last, log, k, parts, folded, k_b, k_h, k_l, k_d, scale, sure, G, K, n_rows,
    R: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Write each key's sums of probabilities over the rows of each step, per head; each lane's sum over the steps."""
    M: tl.constexpr = HEADS * ROWS
    width = tl.num_programs(0) * N if R > 1 else K
    end = (tl.program_id(0) + 1) * N
    slot = end - N + tl.arange(0, N)
    if R == 1:
        keys = _keys(k, k_b, k_h, k_l, k_d, slot, G, K, D, D_TILE)
    m, d, head = tl.arange(0, M), tl.arange(0, D_TILE), tl.arange(0, HEADS)
    places = n_rows
    if first is not None:
        places = tl.where(end > tl.load(lowest + tl.program_id(1)), n_rows, 0)
    for x in range(places):
        x += tl.program_id(1).to(tl.int64) * n_rows  # tiles of all groups
        sums = tl.zeros([N, M], WIDE)
        for r in range(R):
            key = slot - (R - 1) + r  # step r reads rows r, r + R, ...: key - row is the same in each step
            if R > 1:
                keys = _keys(k, k_b, k_h, k_l, k_d, key, G, K, D, D_TILE)
            at = (x * R + r) * M
            q = tl.load(rows + at * D_TILE + m[:, None] * D_TILE + d)
            # keys by rows here, rows by keys in the first pass: the summed axis lies within a thread
            scores = tl.dot(keys, tl.trans(q), input_precision="ieee", out_dtype=WIDE)  # [N, M]
            p = scores * scale - tl.load(log + at + m)
            # inf - inf in a row that gives nothing. On a GPU the larger of NaN and a number is the number, and the
            # assembler drops the comparison, as no power of two fails it; Triton's interpreter needs the comparison
            p = tl.exp2(tl.maximum(p, -1e3))
            p = tl.where(p >= 0.0, tl.minimum(p, 1.0), 0.0)  # the passes may differ in a huge score's last place
            if first is not None:
                p = tl.where(key[:, None] >= tl.load(first + at + m), p, 0.0)
            if (end > sure) | (end < N + R):  # some row may not see a key, or a slot lies before the first
                p = tl.where((key >= 0)[:, None] & (key[:, None] < tl.load(last + at + m)), p, 0.0)
            column = tl.sum(tl.reshape(p, [N, HEADS, ROWS]), 2)
            spot = parts + (x * R + r) * HEADS * width + head.to(tl.int64) * width + slot[:, None]
            tl.store(spot, column, mask=(slot < width)[:, None])
            sums += p
        if R > 1:
            tl.store(folded + x * M * width + m.to(tl.int64) * width + slot[:, None], sums)


@triton.jit
def _sums(
    parts, folded, length, columns, distances, H, G, K, W, per_head, n_rows, width,
    R: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write each key's sum of parts; and entry d, the sum of the lanes on the diagonal key - row = length - W - d."""
    head = tl.program_id(1)
    group, h = head // (H // G), head % (H // G)
    first = group.to(tl.int64) * n_rows + h // HEADS * per_head  # first of the head's tiles
    d = tl.program_id(0) * N + tl.arange(0, N)
    out = head.to(tl.int64) * K + d
    total = tl.zeros([N], WIDE)
    for x in range(per_head * R):
        part = parts + ((first * R + x) * HEADS + h % HEADS) * width
        total += tl.load(part + d + R - 1 - x % R, mask=d < K, other=0.0)
    tl.store(columns + out, total, mask=d < K)
    if R > 1:
        n = K
        if length is not None:
            n = tl.load(length + head).to(tl.int32)
        total = tl.zeros([N], WIDE)
        for a in range(tl.cdiv(W, R)):
            slot = n - W - d + a * R + R - 1
            at = folded + ((first + a // ROWS) * HEADS * ROWS + h % HEADS * ROWS + a % ROWS) * width
            total += tl.load(at + slot, mask=(slot >= 0) & (d < n), other=0.0)
        tl.store(distances + out, total, mask=d < K)
