"""How many tokens may be dropped: the sum of a row, then the search of coverage_mask for a share of it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.token_budget import Drop, Most, Votes

from . import why_not_here
from .coverage_mask import within_mass
from .topk_mask import entries, in_rows, sizes


def why_not(votes: Tensor, tau: float, most: Tensor) -> str | None:
    return why_not_here(votes)


def token_budget(votes: Votes, tau: float, most: Most) -> Drop:
    drop = torch.empty(len(votes), dtype=torch.int64, device=votes.device)
    rows, limit = in_rows(votes), most.contiguous() if most.ndim else int(most)
    _token_budget[(len(votes),)](
        rows, tau, limit, drop, rows.stride(0), rows.shape[1], PER_ROW=most.ndim > 0, **sizes(votes, mass=True)
    )
    return drop


@triton.jit
def _token_budget(
    votes, tau, most, drop, row_stride, n, PER_ROW: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    votes += row * row_stride
    sums = tl.zeros([N // 2], WIDE)
    for start in range(0, n, N):
        slot = start + tl.arange(0, 2)[:, None] * (N // 2) + tl.arange(0, N // 2)
        x = entries(votes, slot, n, 0.0, WIDE)
        sums += tl.sum(tl.where(x == float("inf"), 0.0, x), 0)
    target = (tl.sum(sums, 0) + 1e-8) * tau
    low, high, above, within, spare = within_mass(votes, n, target, True, N, WIDE)
    under = above + tl.minimum(spare, within)
    limit = most
    if PER_ROW:
        limit = tl.load(most + row)
    tl.store(drop + row, tl.minimum(tl.where(under > 0, under + 1, 0), limit))
