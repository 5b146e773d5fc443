"""Coarse pictures of one head: where dense attention looks, and which pairs plans compute.

They are summed from CHUNK queries at a time, and from at most ROWS queries for each row of cells, so the memory never
grows with the square of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..plan import Plan
from ..problem import Problem

SIDES = (128, 96, 64, 48, 32)  # cells along an axis: the first of these that keeps a page small enough
CELLS = 12_000_000  # most cells of all pictures of a page; compressed they take far fewer bytes
ROWS = 16  # most queries sampled for one row of cells, spread over it
CHUNK = 256  # sampled queries that are computed at a time
WHOLE, UNSEEN = 254, 255  # levels of a cell: all pairs computed; no query sees a key in it
DECADES = 4  # levels cover attention mass from 1 down to 10**-DECADES


@dataclass(frozen=True)
class Grid:
    """Square cells over the pairs of a prompt; the last ones may be smaller."""

    tokens: int  # of the prompt
    cell: int  # tokens along a cell's side

    @classmethod
    def of(cls, tokens: int, side: int) -> "Grid":
        """Return a grid of at most `side` cells along an axis."""
        return cls(tokens, -(-tokens // side))

    @property
    def cells(self) -> int:
        """The number of cells along an axis."""
        return -(-self.tokens // self.cell)

    def rows(self) -> list[int]:
        """Return the sampled queries: for each row of cells all of them, or ROWS, the first and last included."""
        some = min(self.cell, ROWS)
        spread = torch.linspace(0, self.cell - 1, some).round().long().tolist()
        rows = (start + step for start in range(0, self.tokens, self.cell) for step in spread)
        return sorted({min(row, self.tokens - 1) for row in rows})

    def pooled(self, x: Tensor) -> Tensor:
        """Sum [R, tokens] over the tokens of each cell, to [R, cells]."""
        return pad(x, (0, -self.tokens % self.cell)).unflatten(1, (-1, self.cell)).sum(-1)


@dataclass(frozen=True)
class Look:
    """The pictures of one head: uint8 levels on the CPU, of `levels` and `mass_levels`."""

    attention: Tensor  # [cells, cells]: dense attention mass of a query in the cell, mean over its queries
    computed: tuple[Tensor, ...]  # by plan [2, cells, cells]: part of the pairs, for kept queries and by the fill
    seen: Tensor  # [K] float64: number of sampled queries that see each key
    read: tuple[Tensor, ...]  # by plan [K] float64: number of those that compute the pair


def side(pictures: int) -> int:
    """Return the number of cells along an axis for a page with that many pictures."""
    return next((side for side in SIDES if pictures * side**2 <= CELLS), SIDES[-1])


def look(problem: Problem, plans: Sequence[Plan], grid: Grid) -> Look:
    """Return the pictures of a problem of one head, and of its plans."""
    device, n = problem.q.device, grid.cells
    rows = torch.tensor(grid.rows(), device=device)
    total = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
    visible, mass, queries = total(n, n), total(n, n), total(n)
    computed, seen, read = total(len(plans), 2, n, n), total(grid.tokens), total(len(plans), grid.tokens)
    dropped = [plan.dropped(problem)[0, 0] for plan in plans]
    for some in rows.split(CHUNK):
        at, sees = some // grid.cell, problem.visible(some)[0, 0]
        add = lambda to, x: to.index_add_(0, at, grid.pooled(x).double())  # noqa: B023, E731
        add(visible, sees.float())
        queries.index_add_(0, at, sees.any(-1).double())
        seen += sees.sum(0)
        scores = problem.q[0, 0, some].float() @ problem.k[0, 0].float().mT * problem.scale
        add(mass, scores.masked_fill_(~sees, -torch.inf).softmax(-1).nan_to_num_(0.0))
        for number, plan in enumerate(plans):
            pairs, fills = plan.pairs(problem, some)[0, 0], dropped[number][some, None]
            add(computed[number, 0], (pairs & ~fills).float())
            add(computed[number, 1], (pairs & fills).float())
            read[number] += pairs.sum(0)
    unseen = visible == 0
    shares = (levels(pairs / visible).masked_fill(unseen, UNSEEN).cpu() for pairs in computed)
    attention = mass_levels(mass / queries[:, None]).masked_fill(unseen, UNSEEN).cpu()
    return Look(attention, tuple(shares), seen.cpu(), tuple(read.cpu()))


def levels(share: Tensor) -> Tensor:
    """Return parts in [0, 1] as uint8: 0 only for 0, WHOLE only for 1, evenly spaced between."""
    some = (share * WHOLE).round().clamp(1, WHOLE - 1)
    return torch.where(share <= 0, 0, torch.where(share >= 1, WHOLE, some)).to(torch.uint8)


def mass_levels(mass: Tensor) -> Tensor:
    """Return mass in [0, 1] as uint8: 0 below 10**-DECADES, WHOLE for 1, evenly spaced in the logarithm between."""
    step = (WHOLE - 1) / DECADES
    level = (WHOLE + mass.log10() * step).round().clamp(1, WHOLE)
    return torch.where(mass >= 10.0**-DECADES, level, 0).to(torch.uint8)
