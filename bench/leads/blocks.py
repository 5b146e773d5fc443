"""One scoring pass for both choices: the votes that choose tokens also choose the key blocks of what is left."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.leads.tokens import VotedTokens
from sparsekit import Plan, Problem, dispatch


@dataclass(frozen=True)
class TokensThenBlocks:
    """Tokens by votes; of the kept ones, the key blocks that hold `gamma` of the votes, and a band at the diagonal.

    FlexPrefill after TokenCoverage scores a second time, and looks for diagonals in a sequence whose distances the
    dropped tokens changed; this does neither.
    """

    tokens: VotedTokens
    gamma: float = 0.9  # part of the kept tokens' votes on the blocks kept, in (0, 1]
    band: int = 1  # blocks before its own that a query block sees, >= 0
    block_size: int = 128
    chooses: ClassVar[str] = "tokens"

    def __call__(self, problem: Problem) -> Plan:
        p, m, (B, H) = problem, self.block_size, problem.q.shape[:2]
        kept = self.tokens.choose(p)
        scores = dispatch.run("window_scores", p.q.device.type, p, self.tokens.window)[0]
        if kept is not None:
            assert kept.full, "one number of tokens for all heads"
            scores = scores.gather(-1, kept.idx.expand(B, H, -1).long())
        pooled = torch.nn.functional.pad(scores, (0, -scores.shape[-1] % m)).unflatten(-1, (-1, m)).sum(-1)
        J = pooled.shape[-1]
        mass = self.gamma * scores.sum(-1)
        within = dispatch.run("coverage_count", scores.device.type, scores.contiguous(), mass, True)
        take = ((within + 1 + m) // m).clamp(max=J)
        pooled[..., 0] = torch.inf  # the first block always
        verticals = dispatch.run("topk_mask", pooled.device.type, pooled, take)
        slashes = (torch.arange(J, device=pooled.device) <= self.band).expand(B, H, J).contiguous()
        own = torch.arange(J, device=pooled.device, dtype=torch.int32).expand(B, H, J)
        pattern = verticals, slashes, own, own, None, (m, m)
        return Plan(kept, kept, dispatch.run("vertical_slash_blocks", p.q.device.type, *pattern))
