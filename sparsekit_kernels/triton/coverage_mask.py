"""The entries within a mass: the search of topk_mask, by sums instead of counts; of equal entries as many as fit.

A long row is shared by many programs, or few rows would leave most of a GPU idle. A launch settles four bits of the
key looked for: each program adds up its share of the row in 16 bins, by the next four bits of the keys that agree with
what is settled. The next launch starts by adding up the bins of all shares, in a fixed order: every program of a row
comes to the same key, without atomics. With MASS the entries are added up, else how many there are: then the target is
a number of entries, less one, for the search is for the entry that exceeds it. Another launch counts in each share what
lies above the key, and what equals it, and a last one does what is asked with these counts.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_mask import Mask, Mass, Scores

from . import why_not_here
from .topk_mask import AHEAD, HELD, choose, in_rows, keys, reached, search, sizes

LONG = 2**18  # entries of a row: longer ones are shared where they are marked
SPLIT, FEW = HELD, 256  # longer rows, if there are so few, are shared where they are counted or compacted
SHARE, SHARES = 8192, 256  # entries of a share, unless the row has more than so many shares: all programs add them up
TILE = 4, 128  # entries a step; a bin adds up each column, so that a thread holds few sums and loads much at once


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return why_not_here(scores)


def coverage_mask(scores: Scores, mass: Mass, largest: bool) -> Mask:
    rows = in_rows(scores)
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if rows.shape[1] > LONG:
        mark_shared(rows, limits(scores, mass), mask, not largest)
        return mask
    _coverage_mask[(len(rows),)](
        rows, limits(scores, mass), mask, rows.stride(0), rows.shape[1], SMALLEST=not largest, **sizes(rows, mass=True)
    )
    return mask


def mark_shared(rows: Tensor, limit: Tensor, mask: Tensor, smallest: bool) -> None:
    where, shape, constants = found(rows, limit, True, smallest)
    _mark_share[(len(rows), constants["SHARES"])](*where, mask, *shape, **constants)


def are_shared(rows: Tensor) -> bool:
    """Return whether many programs had better share each row [R, n]."""
    return rows.shape[1] > SPLIT and len(rows) <= FEW


def found(rows: Tensor, limit: Tensor, mass: bool, smallest: bool) -> tuple[tuple[Any, ...], tuple[int, ...], dict]:
    """The key [R] at which each row [R, n] exceeds its limit, and counts in each share, as a later launch takes them.

    First what lies where: rows, limit, keys, the sum above the key, and [R, shares] of how many entries lie above it
    and how many equal it; then the sizes of a share; then constants.
    """
    (R, n), wide, device = rows.shape, sizes(rows)["WIDE"], rows.device
    passes, shares = wide.primitive_bitwidth // 4, min(triton.next_power_of_2(triton.cdiv(n, SHARE)), SHARES)
    step = TILE[0] * TILE[1]
    share = triton.cdiv(n, shares * step) * step
    low = torch.empty(passes + 1, R, dtype=torch.int64 if passes == 16 else torch.int32, device=device)
    above, sums = limit.new_empty(passes + 1, R), limit.new_empty(passes, R, shares, 16)
    counts = torch.empty(2, R, shares, dtype=torch.int32, device=device)
    shape = rows.stride(0), n, share
    constants = dict(MASS=mass, SMALLEST=smallest, SHARES=shares, WIDE=wide)
    for number in range(passes):
        _bin_share[(R, shares)](rows, limit, low, above, sums, number, *shape, M=TILE[0], N=TILE[1], **constants)
    _count_share[(R, shares)](rows, limit, low, above, sums, counts, passes, *shape, N=step, **constants)
    return (rows, limit, low[passes], above[passes], *counts), shape, constants | dict(N=step)


def limits(scores: Scores, mass: Mass) -> Tensor:
    """The mass of each row, in the type the rows are summed in."""
    return mass.to(torch.promote_types(scores.dtype, torch.float32)).expand(scores.shape[:-1]).contiguous()


@triton.jit
def _coverage_mask(
    scores, limit, mask, row_stride, n, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * row_stride
    target = tl.load(limit + row)
    low, high, above, within, spare = within_mass(scores, n, target, SMALLEST, N, WIDE)
    tied = 0
    for start in tl.range(0, n, N // 2, num_stages=AHEAD):
        slot = start + tl.arange(0, N // 2)
        key, x = keys(scores, slot, n, True, SMALLEST, WIDE)
        chosen, tied = choose(key, low, high, spare, within, tied)
        tl.store(mask + row * n + slot, chosen, mask=slot < n)


@triton.jit
def within_mass(scores, n, target, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr):
    """Bounds of the entry that leaves the mass, how many lie above them and within them, how many of those fit."""
    low, high, above, within, mass = search(scores, n, target, True, SMALLEST, N, WIDE)
    spare = 0
    if low == high:  # equal entries; else one, which does not fit
        spare = how_many_fit(low, mass, target, SMALLEST, WIDE)
    return low, high, above, within, spare


@triton.jit
def how_many_fit(key, mass, target, SMALLEST: tl.constexpr, WIDE: tl.constexpr):
    """How many entries of this key the target has room for, beside the mass of those above."""
    value = (~key if SMALLEST else key).to(WIDE, bitcast=True)
    fit = (target - mass) / tl.where(value > 0.0, value, float("inf"))
    fit = tl.ceil(fit) - 1 if SMALLEST else tl.floor(fit)
    return tl.minimum(tl.maximum(fit, 0.0), 2147483520.0).to(tl.int32)


@triton.jit(do_not_specialize=["number"])
def _bin_share(
    scores, limit, lows, masses, sums, number, row_stride, n, share,
    MASS: tl.constexpr, SMALLEST: tl.constexpr, SHARES: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    KEY: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    BINS: tl.constexpr = tl.uint64 if BITS == 64 else tl.uint32
    row, part, R = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    low, mass = tl.full([], -(2 ** (BITS - 1)), KEY), tl.full([], 0.0, WIDE)
    if number > 0:
        low, mass = _settle(tl.load(limit + row), lows, masses, sums, number, SMALLEST, SHARES, WIDE)
    if part == 0:
        tl.store(lows + number * R + row, low)
        tl.store(masses + number * R + row, mass)
    shift = BITS - 4 * (number + 1)
    bins = tl.arange(0, 16)
    total = tl.zeros([16, N], WIDE)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), M * N):
        slot = start + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        key, x = keys(scores + row * row_stride, slot, n, MASS, SMALLEST, WIDE)
        if not MASS:
            x = tl.where(slot < n, 1.0, 0.0).to(WIDE)
        bin = (key ^ low).to(BINS, bitcast=True) >> shift.to(BINS)  # 16 and more where settled bits differ
        total += tl.sum(tl.where(bin[None, :, :] == bins[:, None, None], x[None, :, :], 0.0), 1)
    tl.store(sums + ((number * R + row) * SHARES + part) * 16 + bins, tl.sum(total, 1))


@triton.jit
def _settle(target, lows, masses, sums, number, SMALLEST: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr):
    """What is known before pass `number`: the settled bits, and the mass above their keys."""
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    row, bins = tl.program_id(0).to(tl.int64), tl.arange(0, 16)
    last = (number - 1) * tl.num_programs(0) + row
    low, mass = tl.load(lows + last), tl.load(masses + last)
    parts = tl.arange(0, SHARES)[:, None] * 16 + bins[None, :]
    each = tl.sum(tl.load(sums + last * SHARES * 16 + parts), 0)
    total = mass + tl.sum(tl.where(bins[None, :] >= bins[:, None], each[None, :], 0.0), 1)  # from each bin up
    over = reached(0, total, target, True, SMALLEST) & (bins > 0)
    chosen = tl.sum(over.to(tl.int32), 0)  # the highest bin that reaches the target; bin 0 did before
    mass = tl.max(tl.where(bins > chosen, total, mass), 0)
    return low + (chosen.to(low.dtype) << (BITS - 4 * number).to(low.dtype)), mass


@triton.jit(do_not_specialize=["number"])
def _count_share(
    scores, limit, lows, masses, sums, counts, number, row_stride, n, share,
    MASS: tl.constexpr, SMALLEST: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, part, R = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    low, mass = _settle(tl.load(limit + row), lows, masses, sums, number, SMALLEST, SHARES, WIDE)
    if part == 0:
        tl.store(lows + number * R + row, low)
        tl.store(masses + number * R + row, mass)
    above, equal = tl.zeros([N], tl.int32), tl.zeros([N], tl.int32)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), N):
        slot = start + tl.arange(0, N)
        key, x = keys(scores + row * row_stride, slot, n, MASS, SMALLEST, WIDE)
        above += ((key > low) & (slot < n)).to(tl.int32)
        equal += ((key == low) & (slot < n)).to(tl.int32)
    tl.store(counts + row * SHARES + part, tl.sum(above, 0))
    tl.store(counts + (R + row) * SHARES + part, tl.sum(equal, 0))


@triton.jit
def before(counts, part, SHARES: tl.constexpr):
    """Of a row's counts [SHARES]: their sum, and that of the shares before this one."""
    parts = tl.arange(0, SHARES)
    each = tl.load(counts + tl.program_id(0).to(tl.int64) * SHARES + parts)
    return tl.sum(each, 0), tl.sum(tl.where(parts < part, each, 0), 0)


@triton.jit
def _mark_share(
    scores, limit, lows, masses, aboves, equals, mask, row_stride, n, share,
    MASS: tl.constexpr, SMALLEST: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low = tl.load(lows + row)
    spare = how_many_fit(low, tl.load(masses + row), tl.load(limit + row), SMALLEST, WIDE)
    within, tied = before(equals, part, SHARES)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), N):
        slot = start + tl.arange(0, N)
        key, x = keys(scores + row * row_stride, slot, n, MASS, SMALLEST, WIDE)
        inside, tied = choose(key, low, low, spare, within, tied)
        tl.store(mask + row * n + slot, inside, mask=slot < n)
