"""The op `window_scores`: the mean attention probability that the last queries give each key, and each distance."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..problem import PAD, Problem, to_heads
from ..samples import Arguments, Samples

Scores = Float[Tensor, "_kinds B H K"]


def why_not(problem: Problem, voters: int, diagonals: bool = False) -> str | None:
    return None


def window_scores(problem: Problem, voters: int, diagonals: bool = False) -> Scores:
    """Compute the mean of softmax(q k^T scale) over the last `voters` queries of each head, padding not counted.

    Entry [0] is the mean for each key. With `diagonals` there is an entry [1], the mean by distance: at d the mean
    probability that the queries give the key d slots before their own; then the queries must be the last keys. float32
    or wider. A query gives 0 to a key that it does not see, in the future or before the sliding window.
    """
    return at_length(_scores(within_sight(problem, voters), voters, diagonals), problem.k.shape[2])


def within_sight(problem: Problem, voters: int) -> Problem:
    """Cut off the keys before the sliding window of the last queries, if no position has to be read for that."""
    p, rows = problem, min(voters, problem.q.shape[2])
    if p.sliding_window is None or not (p.full and p.queries_last):
        return p
    last = slice(-min(rows + p.sliding_window - 1, p.k.shape[2]), None)  # with gaps they see fewer, never more
    q, q_pos = p.q[:, :, -rows:], p.q_pos[..., -rows:]
    return replace(p, q=q, q_pos=q_pos, k=p.k[:, :, last], v=p.v[:, :, last], k_pos=p.k_pos[..., last])


def at_length(scores: Scores, n: int) -> Scores:
    """Pad scores to n keys: those by key in front, those by distance at the end."""
    before = n - scores.shape[-1]
    return torch.stack([pad(x, (0, before) if i else (before, 0)) for i, x in enumerate(scores)]) if before else scores


def _scores(problem: Problem, voters: int, diagonals: bool) -> Scores:
    p, (B, H, Q, D), (G, K) = problem, problem.q.shape, problem.k.shape[1:3]
    q_pos = to_heads(p.q_pos, H)
    real = (q_pos != PAD).sum(-1, keepdim=True)
    row = real - min(voters, Q) + torch.arange(min(voters, Q), device=p.q.device)  # [B, H, W]
    valid, row = row >= 0, row.clamp(min=0)
    q = p.q.gather(2, row[..., None].expand(*row.shape, D))
    wide = torch.promote_types(q.dtype, torch.float32)  # products of large entries overflow in float16
    # one matmul a group reads each key head once for all its query heads
    scores = (q.reshape(B, G, -1, D).to(wide) @ p.k.mT.to(wide)).view(B, H, -1, K).mul_(p.scale)
    seen = p.reach() if p.causal else (p.k_pos != PAD).sum(-1, keepdim=True).expand(B, -1, Q)
    seen = to_heads(seen, H).gather(-1, row) * valid  # [B, H, W], each row's keys are the first ones
    start = int(seen.min())  # before it every key is seen
    tail = torch.arange(start, K, device=p.q.device) >= seen[..., None]
    scores[..., start:].masked_fill_(tail, float("-inf"))
    if p.sliding_window is not None:
        first = to_heads(p.start(), H).gather(-1, row)[..., None]
        scores.masked_fill_(torch.arange(K, device=p.q.device) < first, float("-inf"))
    probability = scores.softmax(-1)
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    columns = probability.sum(2) / count
    if not columns.isfinite().all():  # NaN in the input, or a row that sees no key
        probability = probability.nan_to_num(0.0)
        columns = probability.sum(2) / count
    if not diagonals:
        return columns[None]
    W = probability.shape[2]
    spread = pad(probability, (W - 1, W - 1)).contiguous()
    # entry (r, e) of the view is key e + r - (W - 1) of row r: its columns are the diagonals
    sheared = spread.as_strided((B, H, W, K + W - 1), (*spread.stride()[:2], spread.stride(2) + 1, 1))
    diagonal = sheared.sum(2) / count
    last = ((to_heads(p.k_pos, H) != PAD).sum(-1, keepdim=True) - W) + W - 1  # where row r has its own key
    e = last - torch.arange(K, device=p.q.device)  # [B, H, K]: one more in distance is one less in e
    return torch.stack([columns, diagonal.gather(-1, e.clamp(min=0)) * (e >= 0)])


def fake(problem: Problem, voters: int, diagonals: bool) -> Tensor:
    q, k = problem.q, problem.k
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(2 if diagonals else 1, *q.shape[:2], k.shape[2], dtype=wide)


def samples(draw: Samples) -> Arguments:
    return {"": (draw.problem(), 5, True), "window, padding": (draw.problem(7, padded=True), 5, False)}
