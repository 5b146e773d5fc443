"""The entries within a mass: the search of topk_mask, by sums instead of counts; of equal entries as many as fit.

A long row is shared by many programs, or few rows would leave most of a GPU idle. A launch settles four bits of the
key looked for: each program sums its share of the row into 16 bins, by the next four bits of the keys that agree with
what is settled. The next launch starts by adding up the bins of all shares, in a fixed order: every program of a row
comes to the same key, without atomics. A last launch marks; a share learns how many equal entries come before it from
the counts that the last bins have too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_mask import Mask, Mass, Scores

from . import why_not_here
from .topk_mask import AHEAD, choose, in_rows, keys, reached, search, sizes

LONG = 2**18  # entries: longer rows are shared
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
    (R, n), wide = rows.shape, sizes(rows)["WIDE"]
    passes, shares = wide.primitive_bitwidth // 4, min(triton.next_power_of_2(triton.cdiv(n, SHARE)), SHARES)
    step = TILE[0] * TILE[1]
    share = triton.cdiv(n, shares * step) * step
    low = torch.empty(passes, R, dtype=torch.int64 if passes == 16 else torch.int32, device=rows.device)
    mass = limit.new_empty(passes, R)
    sums = limit.new_empty(passes, R, shares, 16)
    counts = torch.empty(R, shares, 16, dtype=torch.int32, device=rows.device)
    where = rows, limit, low, mass, sums, counts
    shape = rows.stride(0), n, share
    constants = dict(SMALLEST=smallest, SHARES=shares, M=TILE[0], N=TILE[1], WIDE=wide)
    for number in range(passes):
        _bin_share[(R, shares)](*where, number, *shape, **constants)
    _mark_share[(R, shares)](*where, passes, mask, *shape, **constants)


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
    scores, limit, lows, masses, sums, counts, number, row_stride, n, share,
    SMALLEST: tl.constexpr, SHARES: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    BITS: tl.constexpr = WIDE.primitive_bitwidth
    KEY: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    BINS: tl.constexpr = tl.uint64 if BITS == 64 else tl.uint32
    row, part, R = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(0)
    low, mass = tl.full([], -(2 ** (BITS - 1)), KEY), tl.full([], 0.0, WIDE)
    if number > 0:
        low, mass, chosen = settle(tl.load(limit + row), lows, masses, sums, number, SMALLEST, SHARES, WIDE)
    if part == 0:
        tl.store(lows + number * R + row, low)
        tl.store(masses + number * R + row, mass)
    shift = BITS - 4 * (number + 1)
    bins = tl.arange(0, 16)
    total, count = tl.zeros([16, N], WIDE), tl.zeros([16, N], tl.int32)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), M * N):
        slot = start + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        key, x = keys(scores + row * row_stride, slot, n, True, SMALLEST, WIDE)
        bin = (key ^ low).to(BINS, bitcast=True) >> shift.to(BINS)  # 16 and more where settled bits differ
        inside = bin[None, :, :] == bins[:, None, None]
        total += tl.sum(tl.where(inside, x[None, :, :], 0.0), 1)
        if shift == 0:
            count += tl.sum(inside.to(tl.int32), 1)
    tl.store(sums + ((number * R + row) * SHARES + part) * 16 + bins, tl.sum(total, 1))
    if shift == 0:
        tl.store(counts + (row * SHARES + part) * 16 + bins, tl.sum(count, 1))


@triton.jit
def settle(target, lows, masses, sums, number, SMALLEST: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr):
    """What is known before pass `number`: the settled bits, the mass above their keys, and the bin chosen last."""
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
    return low + (chosen.to(low.dtype) << (BITS - 4 * number).to(low.dtype)), mass, chosen


@triton.jit(do_not_specialize=["number"])
def _mark_share(
    scores, limit, lows, masses, sums, counts, number, mask, row_stride, n, share,
    SMALLEST: tl.constexpr, SHARES: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, SHARES)
    target = tl.load(limit + row)
    low, mass, chosen = settle(target, lows, masses, sums, number, SMALLEST, SHARES, WIDE)
    spare = how_many_fit(low, mass, target, SMALLEST, WIDE)
    equal = tl.load(counts + (row * SHARES + parts) * 16 + chosen)
    within, tied = tl.sum(equal, 0), tl.sum(tl.where(parts < part, equal, 0), 0)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), M * N):
        slot = start + tl.arange(0, M * N)
        key, x = keys(scores + row * row_stride, slot, n, True, SMALLEST, WIDE)
        inside, tied = choose(key, low, low, spare, within, tied)
        tl.store(mask + row * n + slot, inside, mask=slot < n)
