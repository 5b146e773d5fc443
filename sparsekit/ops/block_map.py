"""The op `block_map`: the best key blocks of each head's softmax over the means of blocks, in some heads."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..problem import to_heads
from ..samples import Arguments, Samples
from .block_means import block_means
from .coverage_mask import coverage_mask

Queries = Float[Tensor, "B H Q D"]
Positions = Int[Tensor, "B _h Q"]
Means = Float[Tensor, "B _g J D"]
Heads = Bool[Tensor, "B H"]
First = Int[Tensor, "B _f I"] | None
Last = Int[Tensor, "B H I"]
Mask = Bool[Tensor, "B H I J"]


def why_not(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> str | None:
    return None


def block_map(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> Mask:
    """Return the mask of the largest entries that hold at most `gamma` of a head's map; no entry outside `heads`.

    The map of a head has a row for each block of `size` queries: softmax(mean query . mean key * scale) over the key
    blocks `first` (None: 0) to `last`. `means` are the means of key blocks. `last` is -1 for a query block of padding,
    whose row is empty. Of equal entries the earlier comes first. A score that is no finite number counts as 0.
    """
    return best(block_means(q, q_pos, size), means, heads, first, last, scale, gamma)


def best(queries: Tensor, means: Means, heads: Heads, first: First, last: Last, scale: float, gamma: float) -> Mask:
    """Return the mask of `block_map` for means of query blocks [B, H, I, D]."""
    H, j = last.shape[1], torch.arange(means.shape[2], device=means.device)
    hidden = j > last[..., None]
    if first is not None:
        hidden = hidden | (j < to_heads(first, H)[..., None])
    scores = (queries @ to_heads(means, H).mT * scale).nan_to_num(0.0, 0.0, 0.0)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)
    mass = gamma * (last >= 0).sum(-1).to(weights.dtype)
    return coverage_mask(weights.flatten(2), torch.where(heads, mass, -1.0), True).view_as(weights)


def fake(
    q: Tensor,
    q_pos: Tensor,
    means: Tensor,
    heads: Tensor,
    first: Tensor | None,
    last: Tensor,
    scale: float,
    gamma: float,
    size: int,
) -> Tensor:
    return q.new_empty(*last.shape, means.shape[2], dtype=torch.bool)


def samples(draw: Samples) -> Arguments:
    found = {}
    for name, p in {"": draw.problem(), "window, padding": draw.problem(7, padded=True)}.items():
        own = torch.arange(-(-draw.N // draw.M), device=draw.device)
        real = p.block_range(draw.M)[1] > 0
        last = torch.where(real, own, -1).expand(draw.B, draw.H, -1)
        first = p.start()[:, :, :: draw.M] // draw.M if p.sliding_window is not None else None
        means, heads = block_means(p.k, p.k_pos, draw.M), draw.rand(8, draw.B, draw.H) > -0.5
        found[name] = p.q, p.q_pos, means, heads, first, last, p.scale, 0.7, draw.M
    return found
