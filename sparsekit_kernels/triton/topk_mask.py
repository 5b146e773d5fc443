"""The largest entries of each row: a search for the smallest of them by order-preserving bits, not a sort.

A program owns a row. A pass reads it once and counts the entries at or above three thresholds, which settles two bits
of the wanted key. The search ends early once one entry is left between the bounds. The loads of a few steps overlap.
`search` also sums the entries, for coverage_mask. A row of 128K float32 is 512 KiB: it stays in L2, and at most 16
passes read it. A shorter row stays in the registers of its program: `search_held` reads it once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.topk_mask import Keep, Mask, Scores

from . import why_not_here

STEP = 4096  # entries of a step, at most: a row waits for the entries of each step, so steps are few and large
AHEAD = tl.constexpr(4)  # steps whose entries are loaded at once
HELD = 2**15  # entries, at most, of a row that is held in registers
EACH, WARPS = 32, 16  # held entries of a thread, and warps, at most: a program's threads run together on any GPU
TAKEN = 4  # held entries that a thread chooses from at once


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return why_not_here(scores)


def topk_mask(scores: Scores, keep: Keep) -> Mask:
    rows = in_rows(scores)
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    each = keep.expand(scores.shape[:-1]).to(torch.int32).contiguous()
    _topk_mask[(len(rows),)](rows, each, mask, rows.stride(0), rows.shape[1], **places(rows) or sizes(rows))
    return mask


def in_rows(scores: Tensor) -> Tensor:
    """Reshape [..., n] to [rows, n] with the entries of a row side by side: every pass reads them."""
    rows = scores.reshape(-1, scores.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def sizes(rows: Tensor, mass: bool = False) -> dict:
    """Return how a program reads a row of [rows, n], to count or sum its entries: entries per step, type, warps."""
    step = min(max(triton.next_power_of_2(rows.shape[1]), 128), STEP // 2 if mass else STEP)
    wide = tl.float64 if rows.dtype == torch.float64 else tl.float32
    return dict(N=step, WIDE=wide, num_warps=max(step // 256, 1))  # a thread has 4 entries of each half of a step


def places(rows: Tensor) -> dict:
    """Return how a program holds a row of [rows, n]: room for its entries, type, warps; {} if the row is too long."""
    if rows.shape[1] > HELD:
        return {}
    held = max(triton.next_power_of_2(rows.shape[1]), 128)
    wide = tl.float64 if rows.dtype == torch.float64 else tl.float32
    warps = min(max(held // (32 * EACH), 1), WARPS)
    return dict(N=64 * TAKEN * warps, PLACES=held, WIDE=wide, num_warps=warps)


@triton.jit
def _topk_mask(scores, keep, mask, row_stride, n, N: tl.constexpr, WIDE: tl.constexpr, PLACES: tl.constexpr = 0):
    row = tl.program_id(0).to(tl.int64)
    scores += row * row_stride
    target = tl.load(keep + row)
    low, high, above, within = bounds(scores, n, target, N, PLACES, WIDE)
    tied = 0
    for start in tl.range(0, n, N // 2, num_stages=AHEAD):
        slot = start + tl.arange(0, N // 2)
        key, x = keys(scores, slot, n, False, False, WIDE)
        chosen, tied = choose(key, low, high, target - above, within, tied)
        tl.store(mask + row * n + slot, chosen, mask=slot < n)


@triton.jit
def keys(scores, slot, n, MASS: tl.constexpr, SMALLEST: tl.constexpr, WIDE: tl.constexpr):
    """Return integers in the order of the entries (with SMALLEST in reverse), NaN as inf; and the entries."""
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    x = entries(scores, slot, n, 0.0, WIDE)
    # past the end: below every threshold
    return tl.where(slot < n, key_of(x, MASS, SMALLEST, WIDE), -(2 ** (BITS - 1))), x


@triton.jit
def key_of(x, MASS: tl.constexpr, SMALLEST: tl.constexpr, WIDE: tl.constexpr):
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    MOST: tl.constexpr = 2 ** (BITS - 1) - 1
    bits = x.to(tl.int64 if BITS == 64 else tl.int32, bitcast=True)
    if MASS:
        key = bits & MOST  # no entry is below 0
    else:
        bits = tl.where(x == 0.0, 0, bits)  # -0 is 0
        key = bits ^ ((bits >> (BITS - 1)) & MOST)
    return ~key if SMALLEST else key


@triton.jit
def entries(scores, slot, n, beyond, WIDE: tl.constexpr):
    x = tl.load(scores + slot, mask=slot < n, other=beyond).to(WIDE)
    return tl.where(x != x, float("inf"), x)


@triton.jit
def entry_of(key, MASS: tl.constexpr, SMALLEST: tl.constexpr, WIDE: tl.constexpr):
    """Return the entry that has a key; for a key below all entries' the last entry, for one above them NaN."""
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    INF: tl.constexpr = 0x7F800000 if BITS == 32 else 0x7FF0000000000000
    if SMALLEST:
        bits = tl.minimum(~key, INF)
    elif MASS:
        bits = tl.maximum(key, 0)
    else:
        bits = tl.maximum(key, -INF - 1)
        bits ^= (bits >> (BITS - 1)) & (2 ** (BITS - 1) - 1)
    return bits.to(WIDE, bitcast=True)


@triton.jit
def bounds(scores, n, target, N: tl.constexpr, PLACES: tl.constexpr, WIDE: tl.constexpr):
    """Return bounds low <= key <= high of the entry that `target` entries reach, and the numbers above and within."""
    if PLACES:
        # entries beyond the end are as small as any; with SMALLEST they come last and are never needed
        slot = tl.arange(0, PLACES)
        x = entries(scores, slot, n, -float("inf"), WIDE)
        if not scores.dtype.element_ty.is_floating():  # integers have no such entry to load
            x = tl.where(slot < n, x, -float("inf"))
        low, high, above, within = search_held(key_of(x, False, False, WIDE), n, target, WIDE)
    else:
        low, high, above, within, mass = search(scores, n, target, False, False, N, WIDE)
    return low, high, above, within


@triton.jit
def search(scores, n, target, MASS: tl.constexpr, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr):
    """Return bounds low <= key <= high of the entry that reaches `target`, counted from the largest key down.

    With MASS the target is a sum: it is reached once the sum exceeds it, with SMALLEST once the sum is not below it.
    Also return the numbers of entries above and within the bounds, and the sum of those above. Within the bounds is
    one entry, or several equal ones, or no entry if the row does not reach the target.
    """
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    HALF: tl.constexpr = N // 2
    LEAST: tl.constexpr = -(2 ** (BITS - 1))
    KEY: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    low, high = tl.full([], LEAST, KEY), tl.full([], -LEAST - 1, KEY)
    shift = tl.full([], BITS, KEY)
    above, upward = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32) + n  # entries above high, entries from low up
    mass = tl.full([], 0.0, WIDE)
    beyond = float("inf") if SMALLEST else -1.0 if MASS else -float("inf")  # counted only together with the last entry
    while (shift > 0) & ((upward - above > 1) | (low == LEAST)):
        shift -= 2
        step = tl.full([], 1, KEY) << shift
        t1, t2, t3 = (
            entry_of(low + step, MASS, SMALLEST, WIDE),
            entry_of(low + 2 * step, MASS, SMALLEST, WIDE),
            entry_of(low + 3 * step, MASS, SMALLEST, WIDE),
        )
        n1, n2, n3 = tl.zeros([HALF], tl.int32), tl.zeros([HALF], tl.int32), tl.zeros([HALF], tl.int32)
        m1, m2, m3 = tl.zeros([HALF], WIDE), tl.zeros([HALF], WIDE), tl.zeros([HALF], WIDE)
        for start in tl.range(0, n, N, num_stages=AHEAD):
            slot = start + tl.arange(0, 2)[:, None] * HALF + tl.arange(0, HALF)  # the same threads hold both halves
            x = entries(scores, slot, n, beyond, WIDE)
            if SMALLEST:
                over1, over2, over3 = x <= t1, x <= t2, x <= t3
            else:
                over1, over2, over3 = x >= t1, x >= t2, x >= t3
            n1 += tl.sum(over1.to(tl.int32), 0)
            n2 += tl.sum(over2.to(tl.int32), 0)
            n3 += tl.sum(over3.to(tl.int32), 0)
            if MASS:
                m1 += tl.sum(tl.where(over1, x, 0.0), 0)
                m2 += tl.sum(tl.where(over2, x, 0.0), 0)
                m3 += tl.sum(tl.where(over3, x, 0.0), 0)
        c1, c2, c3 = tl.minimum(tl.sum(n1, 0), n), tl.minimum(tl.sum(n2, 0), n), tl.minimum(tl.sum(n3, 0), n)
        s1, s2, s3 = tl.sum(m1, 0), tl.sum(m2, 0), tl.sum(m3, 0)
        r1, r2, r3 = (
            reached(c1, s1, target, MASS, SMALLEST),
            reached(c2, s2, target, MASS, SMALLEST),
            reached(c3, s3, target, MASS, SMALLEST),
        )
        # the highest threshold that still reaches the target is the new low, the next higher one the new high
        above = tl.where(r3, above, tl.where(r2, c3, tl.where(r1, c2, c1)))
        mass = tl.where(r3, mass, tl.where(r2, s3, tl.where(r1, s2, s1)))
        upward = tl.where(r3, c3, tl.where(r2, c2, tl.where(r1, c1, upward)))
        low += step * (r1.to(KEY) + r2.to(KEY) + r3.to(KEY))
        high = low + (step - 1)
    return low, high, above, upward - above, mass


@triton.jit
def search_held(key, n, target, WIDE: tl.constexpr):
    """Return the bounds of `search` for a row in registers: a pass costs so little that each settles one bit.

    Once exactly `target` keys are left no more bits are needed: all of these keys lie within the bounds.
    """
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    KEY: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    LEAST: tl.constexpr = -(2 ** (BITS - 1))
    low, shift = tl.full([], LEAST, KEY), tl.full([], BITS, KEY)
    target, upward = tl.minimum(target, n), tl.full([], 0, tl.int32) + n  # number of entries from low up
    while (shift > 0) & (upward != target):
        shift -= 1
        middle = low + (tl.full([], 1, KEY) << shift)
        count = tl.sum((key >= middle).to(tl.int32), 0)
        upward = tl.where(count >= target, count, upward)
        low = tl.where(count >= target, middle, low)
    high, within = tl.full([], -LEAST - 1, KEY), upward
    if upward != target:
        high, within = low, tl.sum((key == low).to(tl.int32), 0)
    return low, high, upward - within, within


@triton.jit
def reached(count, mass, target, MASS: tl.constexpr, SMALLEST: tl.constexpr):
    if not MASS:
        return count >= target
    return (mass < target) == 0 if SMALLEST else (mass <= target) == 0  # written so that NaN reaches it


@triton.jit
def choose(key, low, high, spare, within, tied):
    """Choose a tile's entries above the bounds and the row's first `spare` within; `tied` of these precede the tile."""
    inside = (key >= low) & (key <= high)
    chosen = (key > high) | (inside & (spare >= within))
    if (spare > 0) & (spare < within):
        rank = tied + tl.cumsum(inside.to(tl.int32), 0)
        chosen = chosen | (inside & (rank <= spare))
        tied += tl.sum(inside.to(tl.int32), 0)
    return chosen, tied
