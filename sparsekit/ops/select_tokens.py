"""The tokens with the largest scores, a number of them given for each row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..plan import Tokens


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return None


def select_tokens(scores: Float[Tensor, "B h n"], keep: Int[Tensor, "B _h"]) -> Tokens:
    """The `keep` largest of each row; of equal scores the earlier token wins, so the choice is deterministic."""
    n = scores.shape[-1]
    width = max(int(keep.max()), 1)
    idx = scores.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    spare = torch.arange(idx.shape[-1], device=idx.device) >= keep[..., None]
    return Tokens(idx.masked_fill(spare, n).sort(-1).values.int(), n)
