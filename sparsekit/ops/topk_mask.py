"""The op `topk_mask`: the largest entries of each row, a given number of them, as a mask."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ..samples import Arguments, Samples

Scores = Shaped[Tensor, "*r n"]
Keep = Int[Tensor, "*#r"]
Mask = Bool[Tensor, "*r n"]


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return None


def topk_mask(scores: Scores, keep: Keep) -> Mask:
    """Return the mask of the `keep` largest of each row; of equal entries the earlier wins, NaN counts as inf."""
    if scores.is_floating_point():
        scores = scores.masked_fill(scores.isnan(), torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(scores.shape[-1], device=scores.device) < keep[..., None]
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, first.expand(order.shape))


def fake(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def samples(draw: Samples) -> Arguments:
    scores, few = draw.rand(0, draw.B, draw.H, draw.N), draw.ints([[3], [0]])[: draw.B]
    return {"": (scores, few.expand(draw.B, draw.H)), "bool": (scores[:, 0] > 0, draw.ints([5, 5])[: draw.B])}
