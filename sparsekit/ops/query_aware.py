"""The op `query_aware`: the heads in which an estimate by block means is near the probe's attention."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..problem import to_heads
from ..samples import Arguments, Samples

Probe = Float[Tensor, "B H D"]
Means = Float[Tensor, "B _h J D"]
Pooled = Float[Tensor, "B H J"]
Blocks = Int[Tensor, "*blocks"]  # number of key blocks with tokens: [B, H, 1], or 0-d and on the CPU
Aware = Bool[Tensor, "B H"]


def why_not(probe: Tensor, means: Tensor, pooled: Tensor, blocks: Tensor, scale: float, tau: float) -> str | None:
    return None


def query_aware(probe: Probe, means: Means, pooled: Pooled, blocks: Blocks, scale: float, tau: float) -> Aware:
    """Return the heads in which the distance of `pooled` from softmax(probe . means scale) is below `tau`.

    The softmax is over the first `blocks` blocks. The distance is the Jensen-Shannon distance with natural logarithms,
    in [0, sqrt(ln 2)]; a term of probability 0 is 0.
    """
    wide = torch.promote_types(probe.dtype, torch.float32)  # products of large entries overflow in float16
    scores = (to_heads(means, probe.shape[1]).to(wide) @ probe[..., None].to(wide)).squeeze(3) * scale  # [B, H, J]
    outside = torch.arange(scores.shape[-1], device=scores.device) >= blocks
    both = torch.stack([scores.masked_fill(outside, -torch.inf).softmax(-1), pooled.to(scores.dtype)])
    middle = both.mean(0).clamp(min=torch.finfo(both.dtype).tiny)  # not 0 where both are, to divide by it
    return (0.5 * torch.xlogy(both, both / middle).sum((0, -1))).clamp(min=0).sqrt() < tau


def fake(probe: Tensor, means: Tensor, pooled: Tensor, blocks: Tensor, scale: float, tau: float) -> Tensor:
    return probe.new_empty(probe.shape[:2], dtype=torch.bool)


def samples(draw: Samples) -> Arguments:
    B, H, G, D = draw.B, draw.H, draw.G, draw.D
    given = draw.rand(0, B, H, D), draw.rand(1, B, G, 6, D), draw.rand(2, B, H, 6).softmax(-1)
    ragged = torch.full((B, H, 1), 4, device=draw.device)
    return {"": (*given, torch.tensor(5), 0.3, 0.4), "a length for each head": (*given, ragged, 0.3, 0.4)}
