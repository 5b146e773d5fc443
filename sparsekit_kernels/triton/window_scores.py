"""The attention the last queries give each key, and each distance, in two passes over the keys.

A program owns a tile of keys and answers every row of every query head of their group, so K is read once a pass. The
first pass leaves, per tile, each row's largest score and sum of exponentials; a small kernel joins the tiles; the
second pass sums probabilities down the columns. No sum is shared between programs: no atomics, the same bits each run.
Distances: key minus row is constant along a diagonal. Every FOLD-th row meets keys that are moved on by as much as
the row is, FOLD times, so what was a diagonal of FOLD rows is one place of FOLD products, and they add up in registers:
no element changes its thread. Folded rows go through memory, W / FOLD numbers a key, for the last kernel to sum.
"""

import math

import torch
import triton
import triton.language as tl

from sparsekit.ops.window_scores import PerKey
from sparsekit.problem import PAD, Problem, to_heads

from . import positive_scale, target, tile, why_not_here

FOLD = 4  # more halve the folded rows and double the reads of K, which the caches answer

# per target and pass, for head dims up to 128, 256: rows and keys of a tile at most, warps, stages
TILES = {
    "sm_80": {
        "exponentials": ((128, 128, 8, 2), (64, 64, 8, 2)),
        "columns": ((128, 128, 8, 2), (64, 64, 8, 2)),
        "diagonals": ((64, 64, 8, 2), (64, 64, 8, 2)),
    },
    "sm_90": {
        "exponentials": ((64, 128, 8, 2), (64, 64, 8, 2)),
        "columns": ((128, 128, 8, 2), (64, 64, 8, 2)),
        "diagonals": ((128, 128, 8, 2), (64, 64, 8, 2)),
    },
    "sm_100": {
        "exponentials": ((128, 64, 8, 2), (64, 64, 8, 2)),
        "columns": ((128, 64, 8, 2), (64, 64, 8, 2)),
        "diagonals": ((128, 64, 8, 2), (64, 64, 8, 2)),
    },
    "gfx942": {
        "exponentials": ((64, 64, 8, 2), (32, 32, 4, 2)),
        "columns": ((64, 64, 8, 2), (32, 32, 4, 2)),
        "diagonals": ((64, 64, 8, 2), (32, 32, 4, 2)),
    },
}


def why_not(problem: Problem, window: int, diagonals: bool = False) -> str | None:
    if problem.q.shape[3] > 256:
        return f"head dim {problem.q.shape[3]} is larger than 256"
    return why_not_here(problem.q)


def window_scores(problem: Problem, window: int, diagonals: bool = False) -> tuple[PerKey, PerKey | None]:
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    W = min(window, Q)
    if p.full and (p.queries_last or not p.causal):
        q, seen, number, length = p.q[:, :, Q - W :], None, None, None  # the kernels know: no launch
        sure = K - (W - 1) * p.causal  # how many keys the first row sees, the least of all
    else:
        real, sure = (p.q_pos != PAD).sum(-1, keepdim=True), 0
        row = real - W + torch.arange(W, device=p.q.device)  # [B, h, W]
        reach = p.reach()
        heads = max(reach.shape[1], row.shape[1])
        seen = to_heads(reach, heads).gather(-1, to_heads(row, heads).clamp(min=0)) * to_heads(row >= 0, heads)
        seen = to_heads(seen, H).to(torch.int32).contiguous()  # [B, H, W]
        number = to_heads(real.clamp(1, W), H).to(torch.int32).contiguous()  # [B, H, 1]
        length = to_heads((p.k_pos != PAD).sum(-1, dtype=torch.int32, keepdim=True), H).contiguous()
        q = p.q.gather(2, to_heads(row, H).clamp(min=0)[..., None].expand(B, H, W, D))
    q, scale = positive_scale(q, p.scale / math.log(2))

    wide = torch.promote_types(q.dtype, torch.float32)
    WIDE = tl.float64 if wide == torch.float64 else tl.float32
    inputs = (q, p.k, seen, *q.stride(), *p.k.stride(), scale, sure, int(p.causal), H, G, W, K)
    sizes = dict(D=D, D_TILE=tile(D, 256), WIDE=WIDE)

    first = tiles(D, q.dtype.itemsize, target(q.device), "exponentials", H // G, W)
    n_tiles, lines = -(-K // first["N"]), B * H * W
    top, total = q.new_empty(2, n_tiles, lines, dtype=wide)
    _exponentials[(n_tiles, B * G)](*inputs, top, total, lines, **first, **sizes)
    share = q.new_empty(lines, dtype=wide)
    _join[(-(-lines // 8),)](top, total, number, share, n_tiles, lines, W, N=8, T=128, WIDE=WIDE)

    R, step = (FOLD, "diagonals") if diagonals else (1, "columns")
    folds = -(-W // R)
    second = tiles(D, q.dtype.itemsize, target(q.device), step, H // G, folds)
    n_tiles, per_head = -(-(K + R - 1) // second["N"]), -(-folds // second["ROWS"])
    width = n_tiles * second["N"] if diagonals else K
    parts = q.new_empty(B, H, per_head * R, width, dtype=wide)
    folded = q.new_empty(B, H, folds, width, dtype=wide) if diagonals else None
    _probabilities[(n_tiles, B * G)](*inputs, share, parts, folded, width, R=R, **second, **sizes)
    if parts.shape[2] == 1:
        return parts[:, :, 0], None
    columns = q.new_empty(B, H, K, dtype=wide)
    distances = torch.empty_like(columns) if diagonals else None
    _sums[(-(-K // 1024), B * H)](
        parts, folded, length, columns, distances, W, K, per_head, width, N=1024, R=R, WIDE=WIDE
    )
    return columns, distances


def tiles(head_dim: int, itemsize: int, target: str, step: str, heads: int, rows: int) -> dict[str, int]:
    """Sizes of a launch. A tile of rows takes a head's before those of a second one: HEADS of the group, ROWS each."""
    M, N, warps, stages = (32, 32, 4, 2) if itemsize > 2 else TILES[target][step][head_dim > 128]
    rows = triton.next_power_of_2(rows)
    M = tile(triton.next_power_of_2(heads) * rows, M)
    ROWS = min(rows, M)
    return dict(HEADS=M // ROWS, ROWS=ROWS, N=N, num_warps=warps, num_stages=stages)


@triton.jit
def _keys(k, k_b, k_h, k_l, k_d, b, g, slot, K, D: tl.constexpr, D_TILE: tl.constexpr):
    """A tile of keys, [N, D]."""
    d = tl.arange(0, D_TILE)
    near = k + b * k_b + g * k_h + slot.to(tl.int64)[:, None] * k_l
    return tl.load(near + d[None, :] * k_d, mask=(slot < K)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _places(x, group, per_head, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Of the x-th tile of a group's rows the head within the group, and the place in it: [HEADS * ROWS] each."""
    m = tl.arange(0, HEADS * ROWS)
    return x // per_head * HEADS + m // ROWS, x % per_head * ROWS + m % ROWS


@triton.jit
def _rows(
    q, seen, q_b, q_h, q_l, q_d, sure, causal, b, head, row, inside, H, W, D: tl.constexpr, D_TILE: tl.constexpr
):  # fmt: skip
    """These rows of these heads, [M, D], and how many keys each sees."""
    d = tl.arange(0, D_TILE)
    near = q + b * q_b + head.to(tl.int64) * q_h + row.to(tl.int64) * q_l
    rows = tl.load(near[:, None] + d[None, :] * q_d, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    if seen is None:
        last = sure + causal * row
    else:
        last = tl.load(seen + (b * H + head) * W + row, mask=inside, other=0)
    return rows, last


@triton.jit
def _exponentials(
    q, k, seen, q_b, q_h, q_l, q_d, k_b, k_h, k_l, k_d, scale, sure, causal, H, G, W, K, top, total, lines,
    HEADS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Of each row, over one tile of keys: the largest score, base 2, and the sum of exponentials below it."""
    b, g = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    group, per_head = H // G, tl.cdiv(W, ROWS)
    end = (tl.program_id(0) + 1) * N
    slot = end - N + tl.arange(0, N)
    keys = _keys(k, k_b, k_h, k_l, k_d, b, g.to(tl.int64), slot, K, D, D_TILE)
    mine = tl.program_id(0).to(tl.int64) * lines
    for x in range(tl.cdiv(group, HEADS) * per_head):
        head, row = _places(x, group, per_head, HEADS, ROWS)
        inside, head = (head < group) & (row < W), g * group + head
        rows, last = _rows(q, seen, q_b, q_h, q_l, q_d, sure, causal, b, head, row, inside, H, W, D, D_TILE)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee", out_dtype=WIDE)  # [M, N]
        if end > sure:
            scores = tl.where(slot[None, :] < last[:, None], scores, -float("inf"))
        most = tl.max(scores, 1) * scale
        safe = tl.where(most == -float("inf"), 0.0, most)  # a row that sees no key of the tile
        at = mine + (b * H + head) * W + row
        tl.store(top + at, most, mask=inside)
        tl.store(total + at, tl.sum(tl.exp2(scores * scale - safe[:, None]), 1), mask=inside)


@triton.jit
def _join(top, total, number, share, n_tiles, lines, W, N: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr):
    """Of each row, over all keys: the log of (the sum of exponentials x number of rows), base 2."""
    line, tile = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, T)
    inside = line < lines
    most = tl.full([T, N], -float("inf"), WIDE)
    for t in range(0, n_tiles, T):
        at, here = (t + tile).to(tl.int64)[:, None] * lines + line, (t + tile < n_tiles)[:, None] & inside[None, :]
        most = tl.maximum(most, tl.load(top + at, mask=here, other=-float("inf")))
    highest = tl.max(most, 0)
    highest = tl.where(highest == -float("inf"), 0.0, highest)
    sums = tl.zeros([T, N], WIDE)
    for t in range(0, n_tiles, T):
        at, here = (t + tile).to(tl.int64)[:, None] * lines + line, (t + tile < n_tiles)[:, None] & inside[None, :]
        decay = tl.exp2(tl.load(top + at, mask=here, other=-float("inf")) - highest[None, :])
        sums += decay * tl.load(total + at, mask=here, other=0.0)
    whole = tl.sum(sums, 0)
    good = (whole > 0.0) & (whole < float("inf"))  # not a row that sees no key, or has NaN or inf among its scores
    if number is None:
        rows = W
    else:
        rows = tl.load(number + line // W, mask=inside, other=1)
    log = highest + tl.log2(tl.where(good, whole, 1.0) * rows)
    tl.store(share + line, tl.where(good, log, float("inf")), mask=inside)  # inf: such a row gives nothing to any key


@triton.jit
def _probabilities(
    q, k, seen, q_b, q_h, q_l, q_d, k_b, k_h, k_l, k_d, scale, sure, causal, H, G, W, K, share, parts, folded, width,
    R: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Of each key the sums over every R-th row of a tile, [R]; of R rows, each met with the keys at a distance."""
    b, g = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    group, folds = H // G, tl.cdiv(W, R)
    per_head = tl.cdiv(folds, ROWS)
    slot = tl.program_id(0) * N + tl.arange(0, N)
    keys = _keys(k, k_b, k_h, k_l, k_d, b, g.to(tl.int64), slot, K, D, D_TILE)
    for x in range(tl.cdiv(group, HEADS) * per_head):
        head, fold = _places(x, group, per_head, HEADS, ROWS)
        inside, head = (head < group) & (fold < folds), g * group + head
        heads = x // per_head * HEADS + tl.arange(0, HEADS)
        part = ((b * H + g * group + heads) * per_head + x % per_head) * R
        there = (slot < width)[:, None] & (heads < group)[None, :]
        sums = tl.zeros([N, HEADS * ROWS], WIDE)
        for r in range(R):
            row, key = fold * R + r, slot - (R - 1) + r  # key - row is the same for all r
            if R > 1:
                key = tl.where(key < 0, K, key)  # no key
                keys = _keys(k, k_b, k_h, k_l, k_d, b, g.to(tl.int64), key, K, D, D_TILE)
            real = inside & (row < W)
            rows, last = _rows(q, seen, q_b, q_h, q_l, q_d, sure, causal, b, head, row, real, H, W, D, D_TILE)
            log = tl.load(share + (b * H + head) * W + row, mask=real, other=float("inf"))
            # keys by rows here, rows by keys above: the axis that is summed lies within a thread
            scores = tl.dot(keys, tl.trans(rows), input_precision="ieee", out_dtype=WIDE)  # [N, M]
            p = tl.exp2(scores * scale - log[None, :])
            p = tl.where(key[:, None] < tl.where(log < float("inf"), last, 0)[None, :], p, 0.0)
            column = tl.sum(tl.reshape(p, [N, HEADS, ROWS]), 2)
            tl.store(parts + (part + r)[None, :] * width + slot[:, None], column, mask=there)
            sums += p
        if R > 1:
            at = ((b * H + head) * folds + fold) * width
            tl.store(folded + at[None, :] + slot[:, None], sums, mask=inside[None, :])


@triton.jit
def _sums(
    parts, folded, length, columns, distances, W, K, per_head, width,
    N: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The sum of each key's parts; and entry d: of the folded rows on the diagonal key - row = length - W - d."""
    head = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros([N], WIDE)
    for x in range(per_head * R):
        part = parts + (head * per_head * R + x) * width
        total += tl.load(part + d + R - 1 - x % R, mask=d < K, other=0.0)
    tl.store(columns + head * K + d, total, mask=d < K)
    if R > 1:
        if length is None:
            n = K
        else:
            n = tl.load(length + head)
        folds = tl.cdiv(W, R)
        total = tl.zeros([N], WIDE)
        for a in range(folds):
            slot = n - W - d + a * R + R - 1
            at = folded + (head * folds + a) * width + slot
            total += tl.load(at, mask=(slot >= 0) & (d < n), other=0.0)
        tl.store(distances + head * K + d, total, mask=d < K)
