"""FlexPrefill: per head, a vertical-slash or a query-aware block pattern, with a budget that follows the attention.

Scored: the attention of the last `block_size` queries, summed by key (vertical) and by distance (slash), both pooled
into blocks. A head is query-aware if the Jensen-Shannon distance between its pooled vertical scores and the estimate
softmax(mean probe query . mean key of each block) is below `tau`.
Kept, vertical-slash heads: as many of the best key blocks, and of the best block diagonals, as single keys and single
distances it takes to reach `gamma` of the probe's attention, in blocks, rounded up. Kept, query-aware heads: the
`min_budget` of both, and the best blocks of the map softmax(mean query . mean key) until they hold `gamma` of it.
Always kept: the first key block and the main diagonal.
Source: FlexPrefill, arXiv:2502.20766; defaults from the authors' code.

Differs from the authors' code: the token count is divided by `block_size`, not by 128 (theirs never reaches gamma with
smaller blocks); a block with probability zero has distance zero, not NaN (theirs is then never query-aware); slash
blocks are counted from the diagonal (theirs from the far end, shifted if the length is no multiple of the block);
`scale` holds in the search too; nothing is cached between calls; batches, chunks and any block size run.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import dispatch
from ..parameters import check_count, check_ratio
from ..plan import Blocks, Plan
from ..problem import PAD, Problem, to_heads
from .block_topk import block_means


@dataclass(frozen=True)
class FlexPrefill:
    """Keeps the blocks that hold `gamma` of the estimated attention; returns a Plan with blocks per query head."""

    gamma: float = 0.9  # part of the estimated attention kept, in (0, 1]; 1 keeps every block
    tau: float = 0.1  # Jensen-Shannon distance below which a head is query-aware, in [0, 1]; 0: none is
    block_size: int = 128  # tokens, >= 1, of queries and of keys
    min_budget: int | None = None  # least tokens kept of either kind, rounded up to blocks, >= 1; None: one block
    max_budget: int | None = None  # most tokens kept of either kind, rounded up to blocks, >= 1; None: no limit
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_ratio("gamma", self.gamma, low="(")
        check_ratio("tau", self.tau)
        check_count("block_size", self.block_size, 1)
        for name in ("min_budget", "max_budget"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        if self.min_budget and self.max_budget and self.min_budget > self.max_budget:
            raise ValueError(
                f"min_budget: got {self.min_budget}, more than max_budget {self.max_budget}; allowed is at most that: "
                "lower one or raise the other"
            )

    def __call__(self, problem: Problem) -> Plan:
        p, m, H = problem, self.block_size, problem.q.shape[1]
        if not p.causal:
            raise ValueError(
                "FlexPrefill: the problem is not causal; it looks for diagonals of a causal prefill: pass causal=True, "
                "or take BlockTopK"
            )
        p.require_queries_last("FlexPrefill")
        least = -(-(self.min_budget or 1) // m)
        if self.gamma == 1 or p.q.shape[2] == 1 or p.k.shape[2] <= m * max(2, least):
            return Plan()
        I, J = -(-p.q.shape[2] // m), -(-p.k.shape[2] // m)
        n_q, n_k = (to_heads((pos != PAD).sum(-1), H)[..., None] for pos in (p.q_pos, p.k_pos))  # [B, H, 1]
        columns, distances = dispatch.run("window_scores", p.q.device.type, p, m, True)
        assert distances is not None
        blocks = -(-n_k // m)  # [B, H, 1], key blocks with real tokens
        most = blocks if self.max_budget is None else blocks.clamp(max=-(-self.max_budget // m))
        vertical, slash = _pooled(columns, m), _pooled(distances, m)  # [B, H, J]

        aware = self._query_aware(p, vertical, blocks)  # [B, H, 1]
        take = [
            torch.where(aware, least, self._reaching(x, n_k).clamp(min=least)).minimum(most)
            for x in (columns, distances)
        ]
        verticals, slashes = (_best(x, n) for x, n in zip((vertical, slash), take, strict=True))

        # absolute key blocks a query block touches: one if the chunk is aligned, else two
        start = torch.arange(I, device=p.q.device) * m
        first = (n_k - n_q + start).div(m, rounding_mode="floor")  # [B, H, I]
        last = (n_k - n_q + torch.minimum(start + m, n_q) - 1).div(m, rounding_mode="floor")
        j = torch.arange(J, device=p.q.device)
        mask = verticals[:, :, None]
        for r in (first, last):
            d = r[..., None] - j  # [B, H, I, J]
            mask = mask | ((d >= 0) & slashes.gather(-1, d.clamp(0, J - 1).flatten(2)).view_as(d))
        if aware.any():
            mask = mask | self._block_map(p, aware, last, n_q)
        mask = mask | (n_k <= m * max(2, least))[..., None] | (n_q == 1)[..., None]  # short rows are dense
        open_ = (j <= last[..., None]) & (start < n_q)[..., None]
        return Plan(blocks=Blocks.of(mask & open_, (m, m)))

    def _reaching(self, scores: Tensor, n_k: Tensor) -> Tensor:
        """[B, H, K] -> [B, H, 1]: how many blocks hold as many entries as reach gamma."""
        total = scores.sort(dim=-1, descending=True).values.cumsum(-1)
        entries = (total <= self.gamma).sum(-1, keepdim=True).minimum(n_k) + 1
        return entries // self.block_size + 1

    def _query_aware(self, p: Problem, vertical: Tensor, blocks: Tensor) -> Tensor:
        """[B, H, 1]: whether the pooled estimate tells where the probe looks."""
        if self.tau == 0:
            return torch.zeros_like(blocks, dtype=torch.bool)
        H, m = p.q.shape[1], self.block_size
        n_q = (p.q_pos != PAD).sum(-1, keepdim=True)
        slot = torch.arange(p.q.shape[2], device=p.q.device)
        probe = torch.where((slot >= n_q - m) & (slot < n_q), p.q_pos, PAD)
        q = block_means(p.q, probe, p.q.shape[2])  # [B, H, 1, D]
        k = to_heads(block_means(p.k, p.k_pos, m), H)
        scores = (q @ k.mT).squeeze(2) * p.scale
        outside = torch.arange(scores.shape[-1], device=scores.device) >= blocks
        estimate = scores.masked_fill(outside, float("-inf")).softmax(-1)
        return (_jensen_shannon(estimate, vertical.to(estimate.dtype)) < self.tau)[..., None]

    def _block_map(self, p: Problem, aware: Tensor, last: Tensor, n_q: Tensor) -> Tensor:
        """[B, H, I, J]: the best blocks that hold gamma of the map of block means, in the query-aware heads."""
        H, m = p.q.shape[1], self.block_size
        heads = aware.squeeze(-1)  # [B, H], only these are computed
        q = block_means(p.q, p.q_pos, m)[heads]  # [N, I, D]
        k = to_heads(block_means(p.k, p.k_pos, m), H)[heads]
        j = torch.arange(k.shape[1], device=k.device)
        real = torch.arange(q.shape[1], device=q.device) * m < n_q[heads]  # [N, I]
        hidden = (j > last[heads][..., None]) | ~real[..., None]
        weights = (q @ k.mT * p.scale).masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)
        flat = weights.flatten(1).sort(dim=-1, descending=True, stable=True)
        inside = flat.values.cumsum(-1) <= self.gamma * real.sum(-1, keepdim=True)
        best = torch.zeros_like(inside).scatter(-1, flat.indices, inside).view_as(weights)
        mask = torch.zeros(*heads.shape, *best.shape[1:], dtype=torch.bool, device=best.device)
        mask[heads] = best
        return mask


def _pooled(x: Tensor, size: int) -> Tensor:
    return pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def _best(pooled: Tensor, n: Tensor) -> Tensor:
    """The n largest of each row as a mask, the first always among them."""
    forced = pooled.index_fill(-1, torch.zeros(1, dtype=torch.long, device=pooled.device), math.inf)
    order = forced.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(pooled, dtype=torch.bool).scatter(
        -1, order, (torch.arange(pooled.shape[-1], device=n.device) < n).expand(order.shape)
    )


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Distance, natural log, in [0, sqrt(ln 2)]; a term of probability zero is zero."""
    m = (p + q) / 2
    terms = [torch.where(x > 0, x * (x / m).log(), 0.0).sum(-1) for x in (p, q)]
    return (0.5 * (terms[0] + terms[1])).clamp(min=0).sqrt()


EXAMPLES = (
    FlexPrefill(gamma=0.9, tau=0.1, block_size=2),
    FlexPrefill(gamma=0.6, tau=0.0, block_size=3),
    FlexPrefill(gamma=0.8, tau=1.0, block_size=2),
    FlexPrefill(gamma=0.4, tau=0.3, block_size=2, min_budget=3, max_budget=4),
)
DENSE = FlexPrefill(gamma=1.0, tau=0.0)
