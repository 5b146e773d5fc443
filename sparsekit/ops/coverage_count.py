"""The op `coverage_count`: the row sums of `coverage_mask`, without the mask."""

import torch
from jaxtyping import Int
from torch import Tensor

from ..samples import Arguments, Samples
from . import coverage_mask as definition
from .coverage_mask import Mass, Scores

Counts = Int[Tensor, "*r"]


def why_not(scores: Tensor, mass: Tensor, largest: bool) -> str | None:
    return None


def coverage_count(scores: Scores, mass: Mass, largest: bool) -> Counts:
    """Count the largest entries whose running sum is at most `mass`, or the smallest whose running sum is below it."""
    return definition.coverage_mask(scores, mass, largest).sum(-1)


def fake(scores: Tensor, mass: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape[:-1], dtype=torch.int64)


def samples(draw: Samples) -> Arguments:
    return definition.samples(draw)
