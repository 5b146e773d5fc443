"""The number of entries within a mass: the search of coverage_mask, without the pass that marks them.

A few long rows are each shared by many programs: coverage_mask searches them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_count import Counts, Mass, Scores

from . import why_not_here
from .coverage_mask import are_shared, before, found, how_many_fit, limits, within_mass
from .topk_mask import in_rows, sizes


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return why_not_here(scores)


def coverage_count(scores: Scores, mass: Mass, largest: bool) -> Counts:
    rows = in_rows(scores)
    counts = torch.empty(scores.shape[:-1], dtype=torch.int64, device=scores.device)
    if are_shared(rows):
        return shared(rows, limits(scores, mass).flatten(), not largest).view(counts.shape)
    given = rows, limits(scores, mass), counts, rows.stride(0), rows.shape[1]
    _coverage_count[(len(rows),)](*given, SMALLEST=not largest, **sizes(rows, mass=True))
    return counts


def shared(rows: Tensor, limit: Tensor, smallest: bool) -> Tensor:
    """Return the counts [R] of rows [R, n] that many programs share."""
    where, _, constants = found(rows, limit, True, smallest)
    counts = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    _fit[(len(rows),)](*where[1:], counts, SMALLEST=smallest, SHARES=constants["SHARES"], WIDE=constants["WIDE"])
    return counts


@triton.jit
def _fit(
    limit, lows, masses, aboves, equals, counts, SMALLEST: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    spare = how_many_fit(tl.load(lows + row), tl.load(masses + row), tl.load(limit + row), SMALLEST, WIDE)
    above, none = before(aboves, 0, SHARES)
    equal, none = before(equals, 0, SHARES)
    tl.store(counts + row, above + tl.minimum(spare, equal))


@triton.jit
def _coverage_count(
    scores, limit, counts, row_stride, n, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(limit + row)
    low, high, above, within, spare = within_mass(scores + row * row_stride, n, target, SMALLEST, N, WIDE)
    tl.store(counts + row, above + tl.minimum(spare, within))
