"""The op `token_votes`: the smoothed votes for each token in each head, and their mean over heads."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ..problem import to_heads
from ..samples import Arguments, Samples

Scores = Float[Tensor, "B H K"]
Lengths = Int[Tensor, "*lengths"]  # [B, h, 1], or 0-d and on the CPU
Mean = Float[Tensor, "B K"]


def why_not(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> str | None:
    return None


def token_votes(scores: Scores, scored: Lengths, real: Lengths, pool: int, sinks: int) -> tuple[Scores, Mean]:
    """Average the scores of the first `scored` tokens over `pool` (odd) neighbours, with 0 beyond either end.

    The tokens from `scored` to `real` and the first `sinks` tokens, which are always kept, have inf; padding, from
    `real` on, has -inf. The mean over heads is inf for a token that is not scored in every head; for the sinks it is
    the mean of their votes.
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
