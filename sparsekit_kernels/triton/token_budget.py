"""The number of tokens that may be dropped: the sum of a row, then the search of coverage_mask for a part of it.

A row that fits in registers is read once, and each pass of its search settles one bit. A few longer rows are each
shared by many programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.token_budget import Drop, Most, Votes

from . import why_not_here
from .coverage_count import shared
from .coverage_mask import are_shared, how_many_fit, limits, within_mass
from .topk_mask import entries, in_rows, places, sizes


def why_not(votes: Tensor, tau: float, most: Tensor) -> str | None:
    return why_not_here(votes)


def token_budget(votes: Votes, tau: float, most: Most) -> Drop:
    if are_shared(votes):
        finite = votes.masked_fill(~(votes < torch.inf), 0.0)  # if the sum is 0, dropped votes do not matter
        under = shared(in_rows(votes), limits(votes, (finite.sum(-1) + 1e-8) * tau), True)
        return torch.where(under > 0, under + 1, 0).minimum(most)
    drop = torch.empty(len(votes), dtype=torch.int64, device=votes.device)
    rows, limit = in_rows(votes), most.contiguous() if most.ndim else int(most)
    _token_budget[(len(votes),)](
        rows, tau, limit, drop, rows.stride(0), rows.shape[1], PER_ROW=most.ndim > 0,
        **places(rows) or sizes(rows, mass=True),
    )  # fmt: skip
    return drop


@triton.jit
def _token_budget(
    votes, tau, most, drop, row_stride, n, PER_ROW: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
    PLACES: tl.constexpr = 0,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    votes += row * row_stride
    if PLACES:
        under = _below_held(entries(votes, tl.arange(0, PLACES), n, float("nan"), WIDE), n, tau, WIDE)
    else:
        under = _below(votes, n, tau, N, WIDE)
    limit = most
    if PER_ROW:
        limit = tl.load(most + row)
    tl.store(drop + row, tl.minimum(tl.where(under > 0, under + 1, 0), limit))


@triton.jit
def _below(votes, n, tau, N: tl.constexpr, WIDE: tl.constexpr):
    """Return how many of the lowest votes have a running sum below `tau` times the sum of all finite votes."""
    sums = tl.zeros([N // 2], WIDE)
    for start in range(0, n, N):
        slot = start + tl.arange(0, 2)[:, None] * (N // 2) + tl.arange(0, N // 2)
        x = entries(votes, slot, n, 0.0, WIDE)
        sums += tl.sum(tl.where(x == float("inf"), 0.0, x), 0)
    target = (tl.sum(sums, 0) + 1e-8) * tau
    low, high, above, within, spare = within_mass(votes, n, target, True, N, WIDE)
    return above + tl.minimum(spare, within)


@triton.jit
def _below_held(x, n, tau, WIDE: tl.constexpr):
    """Return what `_below` returns, for a row in registers, inf beyond its end.

    No vote is below 0, so the bits of votes are in the order of the votes. The search is for the largest bits such
    that all smaller votes sum to less than the target. It starts between two bounds: n votes, each below half of
    target / n, sum to less; a vote that is the target or more does not.
    """
    KEY: tl.constexpr = tl.int64 if WIDE.primitive_bitwidth == 64 else tl.int32
    target = (tl.sum(tl.where(x == float("inf"), 0.0, x), 0) + 1e-8) * tau
    least = target / (2 * n)
    low, high = least.to(KEY, bitcast=True), target.to(KEY, bitcast=True) + 1
    mass = tl.sum(tl.where(x < least, x, 0.0), 0)
    while high - low > 1:
        middle = low + (high - low) // 2
        total = tl.sum(tl.where(x < middle.to(WIDE, bitcast=True), x, 0.0), 0)
        below = total < target
        mass = tl.where(below, total, mass)
        low, high = tl.where(below, middle, low), tl.where(below, high, middle)
    value = low.to(WIDE, bitcast=True)
    within = tl.sum((x == value).to(tl.int32), 0)
    spare = how_many_fit(~low, mass, target, True, WIDE)
    under = tl.sum((x < value).to(tl.int32), 0) + tl.minimum(spare, within)
    return tl.where(target > 0.0, under, 0)
