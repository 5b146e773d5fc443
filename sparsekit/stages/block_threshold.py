"""Block threshold: keep the key blocks that score nearly as high as the best one; nothing is sorted.

Scored: every key block, for each query block and key/value group. With queries "each" the score is the sum of
exp(q . mean key) over the block's queries in all heads of the group that see the first token of the key block. With
queries "mean" each head has the score exp(mean query . mean key).
Kept: the blocks that score at least `alpha` times as high as the best one, with queries "mean" in some head of the
group.
Always kept: the blocks of the first `sinks` tokens, the blocks that hold one of a query's nearest `window` keys, and
the diagonal.
Source: FlashPrefill, arXiv:2603.06199, and FlashPrefill V2, arXiv:2608.19758, which score each query; alpha is .08 to
.18 there, by model. The mean query is from MInference's block-sparse pattern, arXiv:2407.02490: it is `block_size`
times cheaper, and one query with large scores does not outweigh the others.
Differs from the authors' code: a query block holds `block_size` positions of every head of a group (theirs: 128 rows of
heads and positions together); the last queries are dense only with `Decompress(dense_last=...)` (theirs: the last two
query blocks); dropped blocks are not replaced by their means; means skip padding; batches run.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import dispatch
from ..band import sinks_and_band
from ..checks import check_amount, check_choice, check_ratio, check_size
from ..plan import Blocks, Plan
from ..problem import Problem, to_heads

ENTRIES = 2**24  # scores in memory at a time: 64 MiB in float32


@dataclass(frozen=True)
class BlockThreshold:
    """A stage that keeps the key blocks that score near the best one; its Plan has blocks per key/value group.

    Args:
        alpha: least score of a kept block, as part of the best block's, in [0, 1]; 0 keeps every block
        sinks: first tokens, which every query sees, >= 0
        window: nearest keys that every query sees, its own among them, in tokens, >= 1
        block_size: tokens, >= 1, of queries and of keys
        queries: "each" query of a block scores, as published, or the "mean" of its queries, for each head
    """

    alpha: float = 0.1
    sinks: int = 256
    window: int = 512
    block_size: int = 128
    queries: Literal["each", "mean"] = "each"
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_ratio("alpha", self.alpha)
        check_amount(self, "sinks", 0)
        check_amount(self, "window", 1)
        check_size("block_size", self.block_size)
        check_choice("queries", self.queries, ("each", "mean"))

    def __call__(self, problem: Problem) -> Plan:
        p, m, H = problem, self.block_size, problem.q.shape[1]
        if self.alpha == 0:
            return Plan()
        if self.queries == "mean":
            given = p, self.alpha, self.sinks, self.window, m
            return Plan(blocks=dispatch.run("threshold_blocks", p.q.device.type, *given))
        means = dispatch.run("block_means", p.k.device.type, p.k, p.k_pos, m)  # [B, G, J, D]
        grouped = lambda x: to_heads(x, H).unflatten(1, (means.shape[1], -1))  # noqa: E731
        start = torch.arange(means.shape[2], device=means.device) * m
        reach = p.reach()
        rows = grouped(pad(reach, (0, -reach.shape[2] % m)).unflatten(2, (-1, m)))  # [B, G, R, I, m]
        first, end, _ = (grouped(x)[..., None] for x in p.block_range(m))  # [B, G, R, I, 1]
        block = torch.arange(means.shape[2], device=means.device)
        open_ = (block >= first.amin(2)) & (block < end.amax(2))  # [B, G, I, J]
        scores = _scores(p, means, rows, start).masked_fill(~open_, 0.0)
        best = scores >= self.alpha * scores.amax(-1, keepdim=True)
        forced = grouped(sinks_and_band(p, self.sinks, self.window, m)).any(2)
        return Plan(blocks=Blocks.of(forced | (open_ & best), (m, m)))


def _scores(p: Problem, means: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    """Return the sum of exp(q . mean key) over each block's queries, up to one factor per query block: [B, G, I, J].

    `rows` [B, G, R, I, m] is the reach of each query. A query scores the blocks whose first token it sees.
    """
    B, G, R, I, m = rows.shape  # noqa: E741
    q = pad(p.q, (0, 0, 0, I * m - p.q.shape[2])).view(B, G, R, I, m, -1)
    step = max(1, ENTRIES // (B * G * R * m * len(start)))
    parts = []
    for i in range(0, I, step):
        some = slice(i, i + step)
        scores = torch.einsum("bgrimd,bgjd->bgrimj", q[:, :, :, some].to(means.dtype), means) * p.scale
        seen = start < rows[:, :, :, some, :, None]
        scores = scores.nan_to_num(0.0, 0.0, 0.0).masked_fill(~seen, -math.inf)
        top = scores.amax((2, 4, 5), keepdim=True)
        top = top.masked_fill(top == -math.inf, 0.0)  # a block of padding
        parts.append((scores - top).exp().sum((2, 4)))
    return torch.cat(parts, 2)


EXAMPLES = (
    BlockThreshold(alpha=0.5, sinks=1, window=1, block_size=2),
    BlockThreshold(alpha=0.9, sinks=4, window=5, block_size=4),
    BlockThreshold(alpha=1.0, sinks=0, window=1, block_size=3),
    BlockThreshold(alpha=0.7, sinks=2, window=3, block_size=2, queries="mean"),
)
DENSE = BlockThreshold(alpha=0.0)
