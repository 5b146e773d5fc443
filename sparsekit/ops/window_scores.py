"""The attention probability the last queries give each key, averaged over them."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..problem import PAD, Problem, to_heads


def why_not(problem: Problem, window: int) -> str | None:
    return None


def window_scores(problem: Problem, window: int) -> Float[Tensor, "B H K"]:
    """Mean of softmax(q k^T scale) over the last `window` real queries of each head; float32 or wider."""
    p, (B, H, Q, D), G = problem, problem.q.shape, problem.k.shape[1]
    q_pos = to_heads(p.q_pos, H)
    real = (q_pos != PAD).sum(-1, keepdim=True)
    row = real - min(window, Q) + torch.arange(min(window, Q), device=p.q.device)  # [B, H, W]
    valid, row = row >= 0, row.clamp(min=0)
    q = p.q.gather(2, row[..., None].expand(*row.shape, D))
    # one matmul a group reads each key head once for all its query heads
    scores = (q.reshape(B, G, -1, D) @ p.k.mT).view(B, H, -1, p.k.shape[2])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * p.scale
    k_pos = to_heads(p.k_pos, H)[..., None, :]
    hidden = k_pos == PAD
    if p.causal:
        hidden = hidden | (k_pos > q_pos.gather(-1, row)[..., None])
    probability = scores.masked_fill_(hidden, float("-inf")).softmax(-1) * valid[..., None]
    return probability.nan_to_num_(0.0).sum(2) / valid.sum(-1, keepdim=True).clamp(min=1)
