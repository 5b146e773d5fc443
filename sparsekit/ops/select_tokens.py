"""The op `select_tokens`: the tokens with the largest scores, a given number for each row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..plan import Tokens
from ..room import TOKEN, for_all
from ..samples import Arguments, Samples

Scores = Float[Tensor, "B h n"]
Keep = Int[Tensor, "B _h"]


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return None


def select_tokens(scores: Scores, keep: Keep) -> Tokens:
    """Choose the `keep` largest of each row; of equal scores the earlier token wins, so the choice is deterministic.

    NaN counts as inf.
    """
    n = scores.shape[-1]
    width, full = common_width(keep, scores[..., 0].numel(), n)
    scores = scores.masked_fill(scores.isnan(), torch.inf)
    idx = scores.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    spare = torch.arange(width, device=idx.device) >= keep[..., None]
    return Tokens(idx.masked_fill(spare, n).sort(-1).values.int(), n, full)


def common_width(keep: Keep, rows: int, n: int) -> tuple[int, bool]:
    """Return the common length of the rows of a choice among n, at least 1, and whether all are known to be as long.

    It is the length of the longest row, or n where the host would have to wait for that and there is room for n.
    """
    if for_all(keep, rows * n, TOKEN):
        return n, False
    counts = keep.flatten().tolist()  # the one host synchronisation of a choice
    width = min(max(*counts, 1), n)
    return width, min(counts) >= width


def fake(scores: Tensor, keep: Tensor) -> Tensor:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    return scores.new_empty(*scores.shape[:-1], longest, dtype=torch.int32)


def samples(draw: Samples) -> Arguments:
    keep = draw.ints([[3], [9]])[: draw.B]
    rows = {"": draw.H, "one choice for all heads": 1}
    return {name: (draw.rand(0, draw.B, h, draw.N), keep.expand(draw.B, h)) for name, h in rows.items()}
