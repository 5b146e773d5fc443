"""The entries within a mass: the search of topk_mask, by sums instead of counts; of equal entries as many as fit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.coverage_mask import Mask, Mass, Scores

from . import why_not_here
from .topk_mask import choose, keys, search, sizes


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return why_not_here(scores)


def coverage_mask(scores: Scores, mass: Mass, largest: bool) -> Mask:
    rows = scores.reshape(-1, scores.shape[-1])
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    _coverage_mask[(len(rows),)](
        rows, limits(scores, mass), mask, *rows.stride(), rows.shape[1], SMALLEST=not largest, **sizes(rows)
    )
    return mask


def limits(scores: Scores, mass: Mass) -> Tensor:
    """The mass of each row, in the type the rows are summed in."""
    return mass.to(torch.promote_types(scores.dtype, torch.float32)).expand(scores.shape[:-1]).contiguous()


@triton.jit
def _coverage_mask(
    scores, limit, mask, row_stride, stride, n, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * row_stride
    target = tl.load(limit + row)
    low, high, above, within, spare = within_mass(scores, stride, n, target, SMALLEST, N, WIDE)
    tied = 0
    for start in range(0, n, N):
        slot = start + tl.arange(0, N)
        key, x = keys(scores, stride, slot, n, True, SMALLEST, WIDE)
        chosen, tied = choose(key, low, high, spare, within, tied)
        tl.store(mask + row * n + slot, chosen, mask=slot < n)


@triton.jit
def within_mass(scores, stride, n, target, SMALLEST: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr):
    """Bounds of the entry that leaves the mass, how many lie above them and within them, how many of those fit."""
    low, high, above, within, mass = search(scores, stride, n, target, True, SMALLEST, N, WIDE)
    spare = 0
    if low == high:  # equal entries; else one, which does not fit
        value = (~low if SMALLEST else low).to(WIDE, bitcast=True)
        fit = (target - mass) / tl.where(value > 0.0, value, float("inf"))
        fit = tl.ceil(fit) - 1 if SMALLEST else tl.floor(fit)
        spare = tl.minimum(tl.maximum(fit, 0.0), 2147483520.0).to(tl.int32)
    return low, high, above, within, spare
