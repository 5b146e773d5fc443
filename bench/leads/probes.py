"""Who votes on tokens: ways to score every key by some of the queries, besides the mean over the last window.

A probe is a function Problem -> [B, H, K], float32 or wider, each entry at least 0. Of a problem without padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekit import Problem

ROWS = 128  # queries looked at together: [H, 128, K] is what memory holds
Probe = Callable[[Problem], Tensor]


def probabilities(p: Problem, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Dense attention's weights of the query indices `rows` [R], at most 128 at a time: key slots [r], [B, H, r, K]."""
    (B, H, _, D), (G, K) = p.q.shape, p.k.shape[1:3]
    slots = torch.arange(K, device=p.q.device)
    for some in rows.split(ROWS):
        own = some + (K - p.q.shape[2])
        scores = (p.q[:, :, some].reshape(B, G, -1, D) @ p.k.mT).view(B, H, -1, K)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(p.scale)
        yield own, scores.masked_fill_(slots > own[:, None], float("-inf")).softmax(-1)


@dataclass(frozen=True)
class LastQueries:
    """The last `window` queries, by their mean or by the one that looks hardest."""

    window: int = 128  # tokens, >= 1
    reduce: str = "mean"  # or "max"

    def __call__(self, p: Problem) -> Tensor:
        Q = p.q.shape[2]
        rows = torch.arange(max(Q - self.window, 0), Q, device=p.q.device)
        if self.reduce == "max":
            found = [weights.amax(2) for _, weights in probabilities(p, rows)]
            return torch.stack(found).amax(0)
        return sum(weights.sum(2) for _, weights in probabilities(p, rows)) / len(rows)  # type: ignore[return-value]


@dataclass(frozen=True)
class Strided:
    """Queries spread evenly over the sequence, by their mean."""

    rows: int = 128  # of them, >= 1
    beyond: int = 0  # keys nearer to the query than this do not count, >= 0: a sliding window has them anyway

    def __call__(self, p: Problem) -> Tensor:
        Q, K = p.q.shape[2], p.k.shape[2]
        rows = torch.linspace(0, Q - 1, min(self.rows, Q), device=p.q.device).round().long()
        slots = torch.arange(K, device=p.q.device)
        total = torch.zeros((), device=p.q.device)
        for own, weights in probabilities(p, rows):
            total = total + weights.masked_fill_(slots > own[:, None] - self.beyond, 0.0).sum(2)
        return total / len(rows)


@dataclass(frozen=True)
class Both:
    """The mean of two probes, each scaled to a sum of one."""

    one: Probe
    other: Probe

    def __call__(self, p: Problem) -> Tensor:
        a, b = (x / x.sum(-1, keepdim=True).clamp(min=1e-8) for x in (self.one(p), self.other(p)))
        return (a + b) / 2


@dataclass(frozen=True)
class Chance:
    """Nobody: a control that shows how much the votes are worth."""

    seed: int = 0

    def __call__(self, p: Problem) -> Tensor:
        (B, H), K = p.q.shape[:2], p.k.shape[2]
        return torch.rand(B, H, K, generator=torch.Generator().manual_seed(self.seed)).to(p.q.device)
