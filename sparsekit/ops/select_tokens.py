"""The tokens with the largest scores, a number of them given for each row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..plan import Tokens

Scores = Float[Tensor, "B h n"]
Keep = Int[Tensor, "B _h"]


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return None


def select_tokens(scores: Scores, keep: Keep) -> Tokens:
    """The `keep` largest of each row; of equal scores the earlier token wins, so the choice is deterministic.

    NaN counts as inf.
    """
    n = scores.shape[-1]
    width, full = common_width(keep, n)
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    idx = scores.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    spare = torch.arange(width, device=idx.device) >= keep[..., None]
    return Tokens(idx.masked_fill(spare, n).sort(-1).values.int(), n, full)


def common_width(keep: Keep, n: int) -> tuple[int, bool]:
    """The length of the longest row of a choice among n, at least 1, and whether all rows are that long."""
    counts = keep.flatten().tolist()  # the one host synchronisation of a choice
    width = min(max(*counts, 1), n)
    return width, min(counts) >= width
