"""The attention the last queries give each key, and each distance, in two passes over the keys.

A program owns a tile of keys and answers every row of every query head of their group, so K is read once a pass. The
first pass leaves, per tile, each row's largest score and sum of exponentials; a small kernel joins the tiles; the
second pass sums probabilities down the columns. No sum is shared between programs: no atomics, the same bits each run.
Distances: key minus row is constant along a diagonal. In a strip of LANES rows each key's probabilities turn by the
key's place, and what was a diagonal is a column: a warp shuffle a probability. The strips' sums go through memory,
2 W / LANES numbers a key, where the probabilities themselves would be W numbers.
"""

import math

import torch
import triton
import triton.language as tl

from sparsekit.ops.window_scores import PerKey
from sparsekit.problem import PAD, Problem, to_heads

from . import target, tile, why_not_here

LANES = 32  # rows of a strip: what one warp shuffle reaches

# per target, for head dims up to 128, 256: rows and keys of a tile, warps; the largest without spills
TILES = {
    "sm_80": ((128, 128, 8), (64, 64, 8)),
    "sm_90": ((128, 128, 8), (64, 64, 8)),
    "sm_100": ((128, 64, 8), (64, 64, 8)),
    "gfx942": ((64, 64, 8), (32, 32, 4)),
}


def why_not(problem: Problem, window: int, diagonals: bool = False) -> str | None:
    if problem.q.shape[3] > 256:
        return f"head dim {problem.q.shape[3]} is larger than 256"
    return why_not_here(problem.q)


def window_scores(problem: Problem, window: int, diagonals: bool = False) -> tuple[PerKey, PerKey | None]:
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    W = min(window, Q)
    real = (p.q_pos != PAD).sum(-1, keepdim=True)
    row = real - W + torch.arange(W, device=p.q.device)  # [B, h, W]
    reach = p.reach()
    heads = max(reach.shape[1], row.shape[1])
    seen = to_heads(reach, heads).gather(-1, to_heads(row, heads).clamp(min=0)) * to_heads(row >= 0, heads)
    seen = to_heads(seen, H).to(torch.int32).contiguous()  # [B, H, W]
    number = to_heads(real.clamp(1, W), H).to(torch.int32).contiguous()  # [B, H, 1]
    q = p.q.gather(2, to_heads(row, H).clamp(min=0)[..., None].expand(B, H, W, D))

    wide = torch.promote_types(q.dtype, torch.float32)
    WIDE = tl.float64 if wide == torch.float64 else tl.float32
    most, N, warps = tiles(D, q.dtype.itemsize, target(q.device), diagonals)
    M = max(LANES, tile(W, most))
    per_head, n_tiles, lines = -(-W // M), -(-K // N), B * H * W
    n_strips = per_head * M // LANES
    top, total = q.new_empty(2, n_tiles, lines, dtype=wide)
    share = q.new_empty(2, lines, dtype=wide)  # each row's largest score, and the weight of its exponentials
    columns = q.new_empty(B, H, K, dtype=wide)
    strips = q.new_empty(B, H, n_strips, 2, n_tiles * N, dtype=wide) if diagonals else columns

    grid, scale = (n_tiles, B * G), p.scale / math.log(2)
    sizes = dict(M=M, N=N, D=D, D_TILE=tile(D, 256), WIDE=WIDE, num_warps=warps, num_stages=2)
    _exponentials[grid](
        q, p.k, seen, seen.amin(-1), top, total, *p.k.stride(), scale, lines, H, G, W, K, per_head, **sizes
    )  # fmt: skip
    _join[(-(-lines // 32),)](top, total, seen, number, share, n_tiles, lines, W, N=32, T=32, WIDE=WIDE)
    _probabilities[grid](
        q, p.k, seen, share, columns, strips, *p.k.stride(), scale, lines, H, G, W, K, per_head, n_strips, n_tiles * N,
        DIAGONALS=diagonals, LANES=LANES, **sizes,
    )  # fmt: skip
    if not diagonals:
        return columns, None
    distances = torch.empty_like(columns)
    length = to_heads((p.k_pos != PAD).sum(-1, dtype=torch.int32, keepdim=True), H).contiguous()
    _distances[(-(-K // 1024), B * H)](
        strips, length, distances, W, K, n_strips, n_tiles * N, N=1024, LANES=LANES, WIDE=WIDE
    )
    return columns, distances


def tiles(head_dim: int, itemsize: int, target: str, diagonals: bool) -> tuple[int, int, int]:
    """Rows and keys of a tile, at most, and warps."""
    M, N, warps = (32, 32, 4) if itemsize > 2 else TILES[target][head_dim > 128]
    return min(M, 64) if diagonals else M, N, warps  # strips turn in shared memory: room for two programs on an SM


@triton.jit
def _keys(k, k_b, k_h, k_l, k_d, b, g, slot, K, D: tl.constexpr, D_TILE: tl.constexpr):
    """A tile of keys, [N, D]."""
    d = tl.arange(0, D_TILE)
    near = k + b * k_b + g * k_h + slot.to(tl.int64)[:, None] * k_l
    return tl.load(near + d[None, :] * k_d, mask=(slot < K)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _rows(q, seen, head, x, W, M: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr):
    """The x-th tile of rows of a head [M, D], their lines in [B, H, W], which are inside, how many keys each sees."""
    row = x * M + tl.arange(0, M)
    line, inside = head * W + row, row < W
    d = tl.arange(0, D_TILE)
    rows = tl.load(q + line[:, None] * D + d, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    return rows, line, inside, tl.load(seen + line, mask=inside, other=0)


@triton.jit
def _exponentials(
    q, k, seen, least, top, total, k_b, k_h, k_l, k_d, scale, lines, H, G, W, K, per_head,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of each row, over one tile of keys: the largest score, base 2, and the sum of exponentials below it."""
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    end = (tl.program_id(0) + 1) * N
    slot = end - N + tl.arange(0, N)
    keys = _keys(k, k_b, k_h, k_l, k_d, b, g, slot, K, D, D_TILE)
    mine = tl.program_id(0).to(tl.int64) * lines
    for x in range(H // G * per_head):
        head = b * H + g * (H // G) + x // per_head
        rows, line, inside, last = _rows(q, seen, head, x % per_head, W, M, D, D_TILE)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee", out_dtype=WIDE) * scale  # [M, N]
        if end > tl.load(least + head):
            scores = tl.where(slot[None, :] < last[:, None], scores, -float("inf"))
        most = tl.max(scores, 1)
        safe = tl.where(most == -float("inf"), 0.0, most)  # a row that sees no key of the tile
        tl.store(top + mine + line, most, mask=inside)
        tl.store(total + mine + line, tl.sum(tl.exp2(scores - safe[:, None]), 1), mask=inside)


@triton.jit
def _join(top, total, seen, number, share, n_tiles, lines, W, N: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr):
    """Of each row, over all keys: the largest score, and 1 / (sum of exponentials x number of rows)."""
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
    divisor = tl.where(good, whole, 1.0) * tl.load(number + line // W, mask=inside, other=1).to(WIDE)
    tl.store(share + line, highest, mask=inside)
    tl.store(share + lines + line, 1.0 / divisor, mask=inside)
    tl.store(seen + line, 0, mask=inside & (good == 0))  # such a row gives nothing to any key


@triton.jit
def _probabilities(
    q, k, seen, share, columns, strips, k_b, k_h, k_l, k_d, scale, lines, H, G, W, K, per_head, n_strips, padded,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, WIDE: tl.constexpr,
    DIAGONALS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of each key of a tile the sum over rows; of each strip of rows the sums along its diagonals."""
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    end = (tl.program_id(0) + 1) * N
    slot = end - N + tl.arange(0, N)
    keys = _keys(k, k_b, k_h, k_l, k_d, b, g, slot, K, D, D_TILE)
    column = tl.zeros([N], WIDE)
    for x in range(H // G * per_head):
        head = b * H + g * (H // G) + x // per_head
        rows, line, inside, last = _rows(q, seen, head, x % per_head, W, M, D, D_TILE)
        highest = tl.load(share + line, mask=inside, other=0.0)
        weight = tl.load(share + lines + line, mask=inside, other=0.0)
        # keys by rows here, rows by keys above: the axis that is summed lies within a thread
        scores = tl.dot(keys, tl.trans(rows), input_precision="ieee", out_dtype=WIDE) * scale  # [N, M]
        p = tl.exp2(scores - highest[None, :]) * weight[None, :]
        p = tl.where(slot[:, None] < last[None, :], p, 0.0)
        column = tl.where(x % per_head == 0, 0.0, column) + tl.sum(p, 1)
        tl.store(columns + head * K + slot, column, mask=(slot < K) & (x % per_head == per_head - 1))
        if DIAGONALS:
            key, lane = tl.arange(0, N)[:, None, None] % LANES, tl.arange(0, LANES)[None, None, :]
            turn = tl.broadcast_to((key - lane + LANES) % LANES, [N, M // LANES, LANES])
            turned = tl.gather(tl.reshape(p, [N, M // LANES, LANES]), turn, 2)
            turned = tl.reshape(turned, [N // LANES, LANES, M // LANES, LANES])
            ahead = (tl.arange(0, LANES)[:, None] >= tl.arange(0, LANES)[None, :])[None, :, None, :].to(WIDE)
            strip = x % per_head * (M // LANES) + tl.arange(0, M // LANES)[None, :, None]
            spot = (head * n_strips + strip) * 2 * padded + (end - N) + lane
            spot += tl.arange(0, N // LANES)[:, None, None] * LANES
            tl.store(strips + spot, tl.sum(turned * ahead, 1))
            tl.store(strips + spot + padded, tl.sum(turned * (1.0 - ahead), 1))


@triton.jit
def _distances(
    strips, length, distances, W, K, n_strips, padded, N: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Entry d: the strips' sums on the diagonal key - row = length - W - d."""
    head = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * N + tl.arange(0, N)
    n = tl.load(length + head)
    total = tl.zeros([N], WIDE)
    for a in range(n_strips):
        key = n - W - d + a * LANES  # the one that row a * LANES meets there
        ahead = strips + (head * n_strips + a) * 2 * padded + key
        total += tl.load(ahead, mask=(key >= 0) & (key < padded) & (d < n), other=0.0)
        behind = ahead + padded + LANES
        total += tl.load(behind, mask=(key + LANES >= 0) & (key + LANES < padded) & (d < n), other=0.0)
    tl.store(distances + head * K + d, total, mask=d < K)
