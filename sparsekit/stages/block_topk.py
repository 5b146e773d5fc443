"""Block top-k: the best key blocks of each query block, scored on block means.

Scored: mean query times mean key of every causal block pair. Kept: per query block the `keep` part of its causal key
blocks with the largest scores. Always kept: the first key block and the diagonal, so that every query sees a key.
Source: the block-sparse pattern of MInference, arXiv:2407.02490.
Differs from the authors' code: the budget is a ratio of the causal blocks, not a fixed hundred; the first block and
the diagonal are forced; ragged last blocks are averaged over their real tokens; means skip padding.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..parameters import check_count, check_ratio
from ..plan import Blocks, Plan
from ..problem import PAD, Problem, to_heads


@dataclass(frozen=True)
class BlockTopK:
    """Keeps the key blocks whose mean matches the query block's mean; returns a Plan with blocks per query head."""

    keep: float = 0.25  # part of the causal key blocks kept per query block, in (0, 1]
    block_size: int = 128  # tokens, >= 1, of queries and of keys
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_ratio("keep", self.keep, low="(")
        check_count("block_size", self.block_size, 1)

    def __call__(self, problem: Problem) -> Plan:
        p, m, H = problem, self.block_size, problem.q.shape[1]
        q = block_means(p.q, p.q_pos, m)  # [B, H, I, D]
        k = to_heads(block_means(p.k, p.k_pos, m), H)  # [B, H, J, D]
        reach = to_heads(p.reach(), H)
        rows = pad(reach, (0, -reach.shape[2] % m)).unflatten(2, (-1, m))  # [B, H, I, m]
        start = torch.arange(k.shape[2], device=q.device) * m
        open_ = start < rows.amax(-1)[..., None]  # [B, H, I, J], some pair is visible
        # the diagonal: blocks that hold the last visible key of some query of the block
        first_edge = rows.masked_fill(rows == 0, PAD).amin(-1)[..., None]
        forced = open_ & ((start + m >= first_edge) if p.causal else False)
        forced[..., 0] = open_[..., 0]
        scores = (q @ k.mT).nan_to_num(0.0, 0.0, 0.0).masked_fill(~open_, float("-inf"))
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        best = rank < (open_.sum(-1, keepdim=True) * self.keep).ceil()
        return Plan(blocks=Blocks.of(open_ & (best | forced), (m, m)))


def block_means(x: Tensor, pos: Tensor, size: int) -> Float[Tensor, "B h I D"]:
    """[B, g, n, D] -> [B, max(g, h), I, D]: the mean of the real tokens of each block, float32 or wider."""
    heads = max(x.shape[1], pos.shape[1])
    real = (to_heads(pos, heads) != PAD)[..., None]
    x = to_heads(x, heads).to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~real, 0.0)
    extra = (0, 0, 0, -x.shape[2] % size)
    total = pad(x, extra).unflatten(2, (-1, size)).sum(3)
    return total / pad(real.to(x.dtype), extra).unflatten(2, (-1, size)).sum(3).clamp(min=1)


EXAMPLES = (
    BlockTopK(keep=0.75, block_size=4),
    BlockTopK(keep=0.5, block_size=2),
    BlockTopK(keep=0.01, block_size=2),
)
DENSE = BlockTopK(keep=1.0)
