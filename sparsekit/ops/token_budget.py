"""The op `token_budget`: the number of tokens that each sequence may drop."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..samples import Arguments, Samples
from . import coverage_count as definition

Votes = Float[Tensor, "B K"]
Most = Int[Tensor, "*most"]  # [B], or 0-d and on the CPU
Drop = Int[Tensor, "B"]


def why_not(votes: Tensor, tau: float, most: Tensor) -> str | None:
    return None


def token_budget(votes: Votes, tau: float, most: Most) -> Drop:
    """Count the lowest votes whose running sum is below `tau` times the sum of all finite votes, plus one, int64.

    The count is at most `most`. It is 0 if even the lowest vote is not below.
    """
    # if all votes are 0, dropped tokens lose nothing
    total = torch.nan_to_num(votes, 0.0, 0.0).sum(-1) + 1e-8
    under = definition.coverage_count(votes, tau * total, False)
    return torch.where(under > 0, under + 1, 0).minimum(most)


def fake(votes: Tensor, tau: float, most: Tensor) -> Tensor:
    return votes.new_empty(votes.shape[0], dtype=torch.int64)


def samples(draw: Samples) -> Arguments:
    votes, most = draw.rand(0, draw.B, draw.N).abs(), draw.ints([3, 20])[: draw.B]
    return {"": (votes, 0.4, torch.tensor(9)), "a bound for each sequence": (votes, 0.4, most)}
