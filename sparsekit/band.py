"""The blocks that are always kept: those of the first tokens, and those near a query."""

import torch
from jaxtyping import Bool
from torch import Tensor

from .problem import PAD, Problem


def sinks_and_band(problem: Problem, sinks: int, window: int, block_size: int) -> Bool[Tensor, "B _h I J"]:
    """Return the mask of the blocks that hold one of the first `sinks` keys, or one of a query's nearest `window`."""
    m = block_size
    I, J = -(-problem.q.shape[2] // m), -(-problem.k.shape[2] // m)  # noqa: E741
    reach = problem.reach()  # [B, h, Q], the last key that a query sees is its own
    if not problem.causal:
        n_q, n_k = problem.lengths()  # the band ends where a sequence's own queries and keys end
        own = torch.arange(problem.q.shape[2], device=reach.device) + 1 + (n_k - n_q)
        reach = own.clamp(min=1).minimum(reach)  # [B, h, Q], 0 where the query is padding
    rows = torch.nn.functional.pad(reach, (0, I * m - reach.shape[2])).unflatten(2, (I, m))
    last = rows.amax(-1)[..., None]  # [B, h, I, 1]
    first = rows.masked_fill(rows == 0, PAD).amin(-1)[..., None] - window
    start = torch.arange(J, device=reach.device) * m
    near = (start + m > first) & ((start < last) if problem.causal else (start < last + window - 1))
    mask = near | ((start < sinks) & ((start < last) if problem.causal else (last > 0)))
    if problem.sliding_window is not None:
        mask = mask & (start + m > problem.start()[..., ::m, None])  # starts ascend: the first row's
    return mask
