"""The entries within a mass: the search of topk_mask, by sums instead of counts; of equal entries as many as fit.

A long row is shared by many programs, because a few rows would leave most of a GPU idle. A launch settles four bits of
the wanted key. Each program sums its share of the row in 16 bins, by the next four bits of the keys that agree with the
settled bits. The next launch starts by adding up the bins of all shares, in a fixed order: every program of a row gets
the same key, without atomics. With MASS the bins sum the entries, otherwise they count them. The search is for the
entry that exceeds the target, so a target of n entries is passed as n - 1. Another launch counts in each share the
entries above the key and those equal to it. A last launch uses these counts to mark or write entries.

A row whose mass is less than 0 has no entry within it: its programs end at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_mask import Mask, Mass, Scores

from . import why_not_here
from .topk_mask import AHEAD, HELD, choose, in_rows, keys, reached, search, sizes

LONG = 2**17  # entries; longer rows are shared if their entries are marked
SPLIT, FEW = HELD, 256  # rows with more entries, if at most so many, are shared to count or compact their entries
SHARE, SHARES = 8192, 256  # entries of a share, and most shares of a row: each program adds up the bins of all shares
TILE = 4, 128  # entries of a step; a bin sums each column, so that a thread holds few sums and loads many entries


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return why_not_here(scores)


def coverage_mask(scores: Scores, mass: Mass, largest: bool) -> Mask:
    rows = in_rows(scores)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
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
    """Return the arguments for a later launch, with the key [R] at which each row [R, n] exceeds its limit.

    First come the tensors: rows, limit, keys, the sum above the key, and [R, shares] numbers of entries above the key
    and equal to it. Then come the row's stride and length and the size of a share, and last the constants.
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
    """Return the mass of each row, in the type that the rows are summed in."""
    return mass.to(torch.promote_types(scores.dtype, torch.float32)).expand(scores.shape[:-1]).contiguous()


@triton.jit
def _coverage_mask(
    scores, limit, mask, row_stride, n, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * row_stride
    target = tl.load(limit + row)
    if target >= 0.0:
        low, high, above, within, spare = within_mass(scores, n, target, SMALLEST, N, WIDE)
        tied = 0
        for start in tl.range(0, n, N // 2, num_stages=AHEAD):
            slot = start + tl.arange(0, N // 2)
            key, x = keys(scores, slot, n, True, SMALLEST, WIDE)
            chosen, tied = choose(key, low, high, spare, within, tied)
            tl.store(mask + row * n + slot, chosen, mask=slot < n)


@triton.jit
def within_mass(scores, n, target, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr):
    """Return bounds of the entry that exceeds the mass, the numbers of entries above and within, and how many fit."""
    low, high, above, within, mass = search(scores, n, target, True, SMALLEST, N, WIDE)
    spare = 0
    if low == high:  # several equal entries; otherwise there is one, which does not fit
        spare = how_many_fit(low, mass, target, SMALLEST, WIDE)
    return low, high, above, within, spare


@triton.jit
def how_many_fit(key, mass, target, SMALLEST: tl.constexpr, WIDE: tl.constexpr):
    """Return how many entries of this key fit into the target after the mass of the entries above."""
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
    if MASS:
        n = tl.where(tl.load(limit + row) < 0.0, 0, n)
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
        bin = (key ^ low).to(BINS, bitcast=True) >> shift.to(BINS)  # 16 or more if settled bits differ
        total += tl.sum(tl.where(bin[None, :, :] == bins[:, None, None], x[None, :, :], 0.0), 1)
    tl.store(sums + ((number * R + row) * SHARES + part) * 16 + bins, tl.sum(total, 1))


@triton.jit
def _settle(target, lows, masses, sums, number, SMALLEST: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr):
    """Return the bits settled before pass `number`, and the mass above their keys."""
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    row, bins = tl.program_id(0).to(tl.int64), tl.arange(0, 16)
    last = (number - 1) * tl.num_programs(0) + row
    low, mass = tl.load(lows + last), tl.load(masses + last)
    parts = tl.arange(0, SHARES)[:, None] * 16 + bins[None, :]
    each = tl.sum(tl.load(sums + last * SHARES * 16 + parts), 0)
    total = mass + tl.sum(tl.where(bins[None, :] >= bins[:, None], each[None, :], 0.0), 1)  # of a bin and those above
    over = reached(0, total, target, True, SMALLEST) & (bins > 0)
    chosen = tl.sum(over.to(tl.int32), 0)  # the highest bin that reaches the target; bin 0 always does
    mass = tl.max(tl.where(bins > chosen, total, mass), 0)
    return low + (chosen.to(low.dtype) << (BITS - 4 * number).to(low.dtype)), mass


@triton.jit(do_not_specialize=["number"])
def _count_share(
    scores, limit, lows, masses, sums, counts, number, row_stride, n, share,
    MASS: tl.constexpr, SMALLEST: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, part, R = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    if MASS:
        n = tl.where(tl.load(limit + row) < 0.0, 0, n)
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
    """Return the sum of a row's counts [SHARES], and the sum over the shares before this one."""
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
    mask += row * n
    n = tl.where(tl.load(limit + row) < 0.0, 0, n)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), N):
        slot = start + tl.arange(0, N)
        key, x = keys(scores + row * row_stride, slot, n, MASS, SMALLEST, WIDE)
        inside, tied = choose(key, low, low, spare, within, tied)
        tl.store(mask + slot, inside, mask=slot < n)
