"""The attention probability the last queries give each key, and each distance, averaged over them."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..problem import PAD, Problem, to_heads


def why_not(problem: Problem, window: int, diagonals: bool = False) -> str | None:
    return None


def window_scores(
    problem: Problem, window: int, diagonals: bool = False
) -> tuple[Float[Tensor, "B H K"], Float[Tensor, "B H K"] | None]:
    """Column sums of softmax(q k^T scale) over the last `window` real queries of each head, over their number.

    With `diagonals` also the sums by distance: entry d is the mean probability the queries give the key d slots
    before their own; it asks that the queries are the last keys. float32 or wider.
    """
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    q_pos, k_pos = to_heads(p.q_pos, H), to_heads(p.k_pos, H)[..., None, :]
    real = (q_pos != PAD).sum(-1, keepdim=True)
    row = real - min(window, Q) + torch.arange(min(window, Q), device=p.q.device)  # [B, H, W]
    valid, row = row >= 0, row.clamp(min=0)
    q = p.q.gather(2, row[..., None].expand(*row.shape, D))
    # one matmul a group reads each key head once for all its query heads
    scores = (q.reshape(B, G, -1, D) @ p.k.mT).view(B, H, -1, K)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * p.scale
    hidden = k_pos == PAD
    if p.causal:
        hidden = hidden | (k_pos > q_pos.gather(-1, row)[..., None])
    probability = scores.masked_fill_(hidden, float("-inf")).softmax(-1) * valid[..., None]
    probability = probability.nan_to_num_(0.0)
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    columns = probability.sum(2) / count
    if not diagonals:
        return columns, None
    own = (k_pos != PAD).sum(-1) - real + row  # [B, H, W], the key slot of each query
    slot = own[..., None] - torch.arange(K, device=p.q.device)
    by_distance = probability.gather(-1, slot.clamp(min=0)) * (slot >= 0)
    return columns, by_distance.sum(2) / count
