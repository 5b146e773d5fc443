"""The last queries' votes for each token, smoothed and ready for a choice; and the mean vote of all heads."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ..problem import to_heads
from ..samples import Arguments, Samples

Scores = Float[Tensor, "B H K"]
Lengths = Int[Tensor, "*lengths"]  # [B, h, 1], or a number: of no axis, on the CPU
Mean = Float[Tensor, "B K"]


def why_not(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> str | None:
    return None


def token_votes(scores: Scores, scored: Lengths, real: Lengths, pool: int, sinks: int) -> tuple[Scores, Mean]:
    """Of the first `scored` tokens the average of `pool` (odd) neighbours among them, zeros beyond either end.

    The tokens from there to `real` and the first `sinks` have inf, they are always kept; those after, padding, have
    -inf. The mean over heads has inf where a token is not scored in every head. It holds the votes for the sinks.
    """
    B, H, K = scores.shape
    scored, real = (to_heads(n, H) if n.ndim else n for n in (scored, real))
    slot = torch.arange(K, device=scores.device).expand(B, 1, K)
    among = slot < scored
    smooth = avg_pool1d(torch.where(among, scores, 0.0), pool, 1, pool // 2)
    mean = torch.where(among.all(1), smooth.mean(1), torch.inf)
    among = among & (slot >= sinks)
    return torch.where(among, smooth, torch.where(slot < real, torch.inf, -torch.inf).to(smooth.dtype)), mean


def fake(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> tuple[Tensor, Tensor]:
    B, _, K = scores.shape
    return scores.new_empty(scores.shape), scores.new_empty(B, K)


def samples(draw: Samples) -> Arguments:
    scores, N = draw.rand(0, draw.B, draw.H, draw.N).abs(), draw.N
    scored, real = (draw.ints([[[n - 4]], [[n - 2]]])[: draw.B] for n in (N - 4, N))
    alike = torch.tensor(N - 4), torch.tensor(N)
    return {"": (scores, *alike, 3, 2), "lengths of sequences": (scores, scored, real, 3, 2)}
