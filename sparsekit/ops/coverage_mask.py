"""The op `coverage_mask`: the entries of each row within a mass, from the largest down or from the smallest up."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..samples import Arguments, Samples

Scores = Float[Tensor, "*r n"]
Mass = Float[Tensor, "*#r"]
Mask = Bool[Tensor, "*r n"]


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return None


def coverage_mask(scores: Scores, mass: Mass, largest: bool) -> Mask:
    """Return the mask of the largest entries with a running sum of at most `mass`, or the smallest with one below it.

    Entries are at least 0, of equal ones the earlier comes first, and NaN counts as inf.
    """
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    values, order = scores.sort(dim=-1, descending=largest, stable=True)
    total, limit = values.cumsum(-1), mass[..., None]
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, total <= limit if largest else total < limit)


def fake(scores: Tensor, mass: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def samples(draw: Samples) -> Arguments:
    scores, mass = draw.rand(0, draw.B, draw.H, draw.N).abs(), draw.rand(1, draw.B, 1).abs()
    return {"": (scores, mass, True), "smallest": (scores, mass, False)}
