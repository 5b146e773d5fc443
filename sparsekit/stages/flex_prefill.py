"""FlexPrefill: a vertical-slash or a query-aware block pattern for each head, with a budget that follows the attention.

Scored: the attention of the probe, the last `block_size` queries, summed by key (vertical) and by distance (slash), and
then by block. A head is query-aware if the Jensen-Shannon distance between its vertical scores by block and the
estimate softmax(mean probe query . mean key of each block) is below `tau`.
Kept, vertical-slash heads: the best key blocks and the best block diagonals. The budget of key blocks is the least
number of keys that together reach `gamma` of the probe's attention, in blocks, rounded up. The budget of diagonals
counts distances in the same way.
Kept, query-aware heads: the `min_budget` of both, and the best blocks of the map softmax(mean query . mean key) until
they hold `gamma` of it.
Always kept: the first key block and the main diagonal.
In a problem with a sliding window only keys inside it count. The verticals are among the keys that the probe sees.
Earlier queries get the probe's slashes, which by themselves hold `gamma` of its attention. The map leaves out blocks
that no query of a query block sees.
Source: FlexPrefill, arXiv:2502.20766; defaults from the authors' code.

Differs from the authors' code: the token count is divided by `block_size`, not by 128 (theirs never reaches gamma with
smaller blocks); a block with probability zero has distance zero, not NaN (their head is then never query-aware); slash
blocks are counted from the diagonal (theirs: from the far end, shifted if the length is no multiple of the block);
`scale` is used in the search too; nothing is cached between calls; batches, chunks and any block size run.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import dispatch
from ..checks import check_amount, check_ratio, check_size
from ..plan import Plan
from ..problem import PAD, Problem, to_heads
from ..room import SCORE, for_all


@dataclass(frozen=True)
class FlexPrefill:
    """A stage that keeps the blocks with `gamma` of the estimated attention; its Plan has blocks per query head.

    Args:
        gamma: part of the estimated attention that is kept, in (0, 1]; 1 keeps every block
        tau: Jensen-Shannon distance below which a head is query-aware, in [0, 1]; 0: no head is
        block_size: tokens, >= 1, of queries and of keys
        min_budget: least tokens of verticals, and of slashes, kept; rounded up to blocks, >= 1; None: one block
        max_budget: most tokens of verticals, and of slashes, kept; rounded up to blocks, >= 1; None: no limit
    """

    gamma: float = 0.9
    tau: float = 0.1
    block_size: int = 128
    min_budget: int | None = None
    max_budget: int | None = None
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_ratio("gamma", self.gamma, low="(")
        check_ratio("tau", self.tau)
        check_size("block_size", self.block_size)
        for name in ("min_budget", "max_budget"):
            if getattr(self, name) is not None:
                check_amount(self, name, 1)
        if self.min_budget and self.max_budget and self.min_budget > self.max_budget:
            raise ValueError(
                f"min_budget: got {self.min_budget}, more than max_budget {self.max_budget}; allowed is at most that: "
                "lower one or raise the other"
            )

    def __call__(self, problem: Problem) -> Plan:
        p, m, H = problem, self.block_size, problem.q.shape[1]
        if not p.causal:
            raise ValueError(
                "FlexPrefill: the problem is not causal; allowed are causal problems, which have diagonals: pass "
                "causal=True, or use BlockTopK"
            )
        p.require_queries_last("FlexPrefill")
        least = -(-(self.min_budget or 1) // m)
        if self.gamma == 1 or p.q.shape[2] == 1 or p.k.shape[2] <= m * max(2, least):
            return Plan()
        (B, _, Q, _), device = p.q.shape, p.q.device
        I = -(-Q // m)
        n_q, n_k = (to_heads(n, H) if n.ndim else n for n in p.lengths())  # [B, H, 1]
        scores = dispatch.run("window_scores", device.type, p, m, True)  # [2, B, H, K]
        pooled = _pooled(scores, m)  # [2, B, H, J]: vertical, slash
        blocks = -(-n_k // m)  # [B, H, 1], key blocks with real tokens
        before = self._before(p, n_q)
        most = blocks - before
        most = most if self.max_budget is None else most.clamp(max=-(-self.max_budget // m))

        first, last = (x.expand(B, H, I) for x in self._own_blocks(p, n_q, n_k))

        take, extra = self._reaching(scores, n_k), None  # [2, B, H, 1]
        if self.tau:
            means = dispatch.run("block_means", device.type, p.k, p.k_pos, m)  # [B, h, J, D]
            aware = self._query_aware(p, means, pooled[0], before, blocks)  # [B, H]
            extra = self._block_map(p, means, aware, last)
            take = torch.where(aware[..., None], least, take)
        take = take.clamp(min=least).minimum(most)
        if p.sliding_window is not None:  # the first block is always kept, but the probe may not see it
            take = take + torch.stack([before > 0, torch.zeros_like(before > 0)])
        verticals, slashes = _best(pooled, take)
        if not p.full:
            verticals = verticals | (n_k <= m * max(2, least)) | (n_q == 1)  # short sequences are dense
        pattern = (verticals, slashes, first, last, extra, (m, m))
        return Plan(blocks=dispatch.run("vertical_slash_blocks", device.type, *pattern))

    def _before(self, p: Problem, n_q: Tensor) -> Tensor:
        """Count the key blocks before the first that the probe sees: [B, H, 1], or 0-d without a sliding window."""
        if p.sliding_window is None:
            return torch.tensor(0, device="cpu")
        row = (n_q - self.block_size).clamp(min=0)
        start = to_heads(p.start(), p.q.shape[1])  # [B, H, Q], ascending
        return start.gather(-1, row.to(start.device).expand(*start.shape[:2], 1)) // self.block_size

    def _own_blocks(self, p: Problem, n_q: Tensor, n_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and last key block of each query block's own tokens, int32 [B, H, I]; aligned: equal."""
        m, (Q, K), device = self.block_size, (p.q.shape[2], p.k.shape[2]), p.q.device
        if p.full and (K - Q) % m == 0:
            own = torch.arange((K - Q) // m, -(-K // m), device=device, dtype=torch.int32)
            return own, own
        start = torch.arange(0, Q, m, device=device)
        first = (start + (n_k - n_q)).div(m, rounding_mode="floor")
        last = ((start + m).minimum(n_q) + (n_k - n_q - 1)).div(m, rounding_mode="floor")
        return first.int(), torch.where(start < n_q, last, -1).int()

    def _reaching(self, scores: Tensor, n_k: Tensor) -> Tensor:
        """Return the budget of each row, in blocks: enough entries to reach gamma; [..., K] -> [..., 1]."""
        mass = scores.new_full(scores.shape[:-1], self.gamma)
        within = dispatch.run("coverage_count", scores.device.type, scores, mass, True)[..., None]
        if n_k.ndim:  # padding has attention 0 and would count
            within = within.minimum(n_k)
        return (within + (1 + self.block_size)) // self.block_size

    def _query_aware(self, p: Problem, means: Tensor, vertical: Tensor, before: Tensor, blocks: Tensor) -> Tensor:
        """Return the heads, as a mask [B, H], in which the estimate by block means is near the probe's attention."""
        if p.sliding_window is not None:
            J, D = means.shape[2:]
            at = (before + torch.arange(J, device=before.device)) % J  # [B, H, J], the blocks the probe sees come first
            means = to_heads(means, p.q.shape[1]).gather(2, at[..., None].expand(*at.shape, D))
            vertical, blocks = vertical.gather(2, at), blocks - before
        if p.full:
            q, pos = p.q[:, :, -self.block_size :], p.q_pos[..., -self.block_size :]
        else:
            row = p.lengths()[0] - self.block_size + torch.arange(self.block_size, device=p.q.device)  # [B, h, m]
            pos = p.q_pos.gather(-1, row.clamp(min=0)).masked_fill(row < 0, PAD)
            at = to_heads(row, p.q.shape[1]).clamp(min=0)[..., None].expand(-1, -1, -1, p.q.shape[3])
            q = p.q.gather(2, at)
        probe = dispatch.run("block_means", p.q.device.type, q, pos, self.block_size)  # [B, H, 1, D]
        given = probe.squeeze(2), means, vertical, blocks, p.scale, self.tau
        return dispatch.run("query_aware", p.q.device.type, *given)

    def _block_map(self, p: Problem, means: Tensor, aware: Tensor, last: Tensor) -> Tensor | None:
        """Return the best blocks with gamma of the map of block means, in query-aware heads, as a mask [B, H, I, J]."""
        first = None if p.sliding_window is None else p.start()[:, :, :: self.block_size] // self.block_size
        rest = p.scale, self.gamma, self.block_size
        (H, I), J = last.shape[1:], means.shape[2]
        if for_all(aware, aware.numel() * I * J, SCORE):  # room for all heads, so that the host need not wait
            return dispatch.run("block_map", p.q.device.type, p.q, p.q_pos, means, aware, first, last, *rest)
        heads = aware.flatten().nonzero().squeeze(-1)  # N heads, often 0; the host waits once
        if not len(heads):
            return None

        def of(x: Tensor) -> Tensor:
            """Select the N heads: [B, h, ...] -> [N, 1, ...]."""
            return x.flatten(0, 1).index_select(0, heads // (H // x.shape[1]))[:, None]

        of_heads = of(p.q), of(p.q_pos), of(means), of(aware), first if first is None else of(first), of(last)
        chosen = dispatch.run("block_map", p.q.device.type, *of_heads, *rest)
        mask = torch.zeros(aware.numel(), I, J, dtype=torch.bool, device=means.device)
        return mask.index_copy(0, heads, chosen[:, 0]).unflatten(0, aware.shape)


def _pooled(x: Tensor, size: int) -> Tensor:
    """Sum the entries of each block: [..., K] -> [..., J]."""
    spare = -x.shape[-1] % size
    return (pad(x, (0, spare)) if spare else x).unflatten(-1, (-1, size)).sum(-1)


def _best(pooled: Tensor, n: Tensor) -> Tensor:
    """Return the mask of the n largest of each row; the first entry is always among them."""
    forced = pooled.clone()
    forced[..., 0] = math.inf
    return dispatch.run("topk_mask", forced.device.type, forced, n.squeeze(-1))


EXAMPLES = (
    FlexPrefill(gamma=0.9, tau=0.1, block_size=2),
    FlexPrefill(gamma=0.6, tau=0.0, block_size=3),
    FlexPrefill(gamma=0.8, tau=1.0, block_size=2),
    FlexPrefill(gamma=0.4, tau=0.3, block_size=2, min_budget=3, max_budget=4),
)
DENSE = FlexPrefill(gamma=1.0, tau=0.0)
