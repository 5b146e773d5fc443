"""The entries within a mass: the search of topk_mask, by sums instead of counts; of equal entries as many as fit.

A long row is shared by many programs: shares.py searches it, and a last launch marks. A share learns how many equal
entries come before it from the counts of all shares.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_mask import Mask, Mass, Scores

from . import why_not_here
from .shares import before, found
from .topk_mask import AHEAD, choose, in_rows, keys, search, sizes

LONG = 2**18  # entries: longer rows are shared


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
