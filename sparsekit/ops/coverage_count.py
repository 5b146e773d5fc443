"""How many entries of each row stay within a given mass: the sum of coverage_mask, where the mask is not wanted."""

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
    """How many of the largest entries have a running sum of at most `mass`, or of the smallest one below it."""
    return definition.coverage_mask(scores, mass, largest).sum(-1)


def fake(scores: Tensor, mass: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape[:-1], dtype=torch.int64)


def samples(draw: Samples) -> Arguments:
    return definition.samples(draw)
