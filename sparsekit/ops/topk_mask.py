"""The largest entries of each row as a mask, a number of them given for each row."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Scores = Shaped[Tensor, "*r n"]
Keep = Int[Tensor, "*#r"]
Mask = Bool[Tensor, "*r n"]


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return None


def topk_mask(scores: Scores, keep: Keep) -> Mask:
    """The `keep` largest of each row; of equal entries the earlier wins, NaN counts as inf."""
    if scores.is_floating_point():
        scores = scores.masked_fill(scores.isnan(), torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(scores.shape[-1], device=scores.device) < keep[..., None]
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, first.expand(order.shape))
