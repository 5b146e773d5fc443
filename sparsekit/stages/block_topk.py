"""Block top-k: keep the best key blocks of each query block, scored by block means.

Scored: every pair of blocks in which some query sees a key, by mean query times mean key. Kept: for each query block
the `keep` part of the key blocks it sees, those with the largest scores. Always kept: the first key block, if it is
seen, and the diagonal, so that every query sees a key.
Source: the block-sparse pattern of MInference, arXiv:2407.02490.
Differs from the authors' code: the budget is a part of the causal blocks, not a fixed hundred; the first block and
the diagonal are always kept; a smaller last block is averaged over its own tokens; means skip padding.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import dispatch
from ..checks import check_ratio, check_size
from ..plan import Blocks, Plan
from ..problem import Problem, to_heads


@dataclass(frozen=True)
class BlockTopK:
    """A stage that keeps the key blocks whose mean is most like the query block's; its Plan has blocks per query head.

    Args:
        keep: part of the key blocks a query block sees that is kept, in (0, 1]
        block_size: tokens, >= 1, of queries and of keys
    """

    keep: float = 0.25
    block_size: int = 128
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_ratio("keep", self.keep, low="(")
        check_size("block_size", self.block_size)

    def __call__(self, problem: Problem) -> Plan:
        p, m, H = problem, self.block_size, problem.q.shape[1]
        means = lambda x, pos: to_heads(dispatch.run("block_means", x.device.type, x, pos, m), H)  # noqa: E731
        q, k = means(p.q, p.q_pos), means(p.k, p.k_pos)  # [B, H, I, D], [B, H, J, D]
        first, end, edge = (to_heads(x, H)[..., None] for x in p.block_range(m))  # [B, H, I, 1]
        block = torch.arange(k.shape[2], device=q.device)
        open_ = (block >= first) & (block < end)  # [B, H, I, J]
        forced = open_ & ((block >= edge) | (block == 0))
        scores = (q @ k.mT).nan_to_num(0.0, 0.0, 0.0).masked_fill(~open_, float("-inf"))
        budget = (open_.sum(-1) * self.keep).ceil().int()
        best = dispatch.run("topk_mask", scores.device.type, scores, budget)
        # positions count up by one: the longest list is known, and the host need not wait for it
        known = p.full and p.queries_last and p.causal
        most = k.shape[2] if p.sliding_window is None else min(k.shape[2], (p.sliding_window + m - 2) // m + 2)
        width = math.ceil(most * self.keep) + 4 if known else None
        return Plan(blocks=Blocks.of(open_ & (best | forced), (m, m), width))


EXAMPLES = (
    BlockTopK(keep=0.75, block_size=4),
    BlockTopK(keep=0.5, block_size=2),
    BlockTopK(keep=0.01, block_size=2),
)
DENSE = BlockTopK(keep=1.0)
