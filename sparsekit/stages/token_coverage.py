"""Dynamic Token Coverage: keep, per head, the tokens the last queries look at (Token Sparse Attention).

Scored: every token before the last `window`, by the mean attention probability the last `window` queries give it,
smoothed by an average of `pool` neighbours. Kept: as many as it takes for the head-averaged, normalised mass of the
dropped ones to stay near `tau`; one number for all heads, each head its own best tokens. Always kept: the last
`window` tokens, and at least `min_tokens` others. Queries and keys keep the same tokens.
With fewer queries than keys (a prefill chunk) the layer's budget falls into a part for the chunk's tokens and a part
for the earlier keys, and each head fills the two apart, so that all heads keep equally many queries and keys.
Source: arXiv:2602.03216, section 2 and Algorithm 1; defaults from the authors' code.

Differs from the authors' code: scores stay in float32 or wider (theirs are rounded to the dtype of q, which ties
most of them); of equal scores the earlier token wins (theirs: arbitrary); any window (theirs returns inf unless it
is a multiple of a tuned tile); an even `pool` is refused (theirs makes one score too many); batches, grouped heads
and chunks run.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from .. import dispatch
from ..parameters import check_choice, check_count, check_ratio
from ..plan import Plan, Tokens
from ..problem import PAD, Problem, to_heads


@dataclass(frozen=True)
class TokenCoverage:
    """Keeps the tokens that carry the last queries' attention; returns a Plan with equal token choices for q and k."""

    tau: float = 0.005  # attention mass that may be *dropped*, in [0, 1]; 0 keeps every token
    window: int = 128  # last queries that vote, in tokens, >= 1; always kept
    pool: int = 7  # neighbours averaged in a score, in tokens, odd, >= 1
    min_tokens: int = 1024  # least number kept besides the window, in tokens, >= 0
    per: str = "head"  # one choice per query "head", per key/value "group" (K, V stay grouped), or for the "layer"
    chooses: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_ratio("tau", self.tau)
        check_count("window", self.window, 1)
        check_count("pool", self.pool, 1, odd=True)
        check_count("min_tokens", self.min_tokens, 0)
        check_choice("per", self.per, ("head", "group", "layer"))

    def __call__(self, problem: Problem) -> Plan:
        p = problem
        Q, K, (B, G) = p.q.shape[2], p.k.shape[2], p.k.shape[:2]
        p.require_queries_last("TokenCoverage")
        if self.tau == 0 or K <= self.min_tokens + min(self.window, Q):
            return Plan()
        n_k = (p.k_pos != PAD).sum(-1, keepdim=True)  # [B, h, 1], real keys
        n_q = (p.q_pos != PAD).sum(-1, keepdim=True)
        w = n_q.clamp(max=self.window)
        slot = torch.arange(K, device=p.q.device)
        prefix = slot < n_k - w  # [B, h, K], what is scored
        chunk = (slot >= n_k - n_q) & (slot < n_k)  # the keys that are queries too

        scores, _ = dispatch.run("window_scores", p.q.device.type, p, self.window)
        scores = scores.masked_fill(~prefix, 0.0)
        scores = avg_pool1d(scores, self.pool, 1, self.pool // 2).masked_fill(~prefix, 0.0)
        early, late = self._budget(scores, prefix, chunk, Q < K)  # [B, 1], how many to drop of each part
        heads = {"head": p.q.shape[1], "group": G, "layer": 1}[self.per]
        # a choice shared by several heads is one on their mean; it can't be finer than the positions' own heads
        heads = max(heads, prefix.shape[1])
        scores = scores.unflatten(1, (heads, -1)).mean(2)

        voted = scores.masked_fill(~prefix, float("inf"))  # the window is always kept
        queries = _best(voted, chunk, late, heads)
        keys = queries
        if Q < K:
            before = _best(voted, (slot < n_k - n_q).expand(B, -1, K), early, heads)
            idx = torch.cat([before.idx, queries.idx], -1).sort(-1).values
            keys = Tokens(idx, K, before.full and queries.full)
            offset = (n_k - n_q).expand(-1, -1, queries.idx.shape[-1])
            idx = torch.where(queries.idx < K, queries.idx - to_heads(offset, heads), Q).int()
            queries = Tokens(idx, Q, queries.full)
        return Plan(queries, keys)

    def _budget(self, scores: Tensor, prefix: Tensor, chunk: Tensor, earlier: bool) -> tuple[Tensor, Tensor]:
        """How many tokens each sequence drops: [B, 1] of the earlier keys, [B, 1] of the chunk's own."""
        most = (prefix.sum(-1).amin(1) - self.min_tokens).clamp(min=0)  # [B]
        layer = scores.mean(1)
        mass = layer / (layer.sum(-1, keepdim=True) + 1e-8)
        mass = mass.masked_fill(~prefix.all(1), float("inf"))
        tau = mass.new_full(mass.shape[:1], self.tau)
        under = dispatch.run("coverage_mask", mass.device.type, mass, tau, False).sum(-1)  # [B]
        drop = torch.where(under > 0, under + 1, 0).minimum(most)
        if not earlier:
            return torch.zeros_like(drop)[:, None], drop[:, None]
        dropped = dispatch.run("topk_mask", mass.device.type, -mass, drop)
        late = (dropped & chunk.all(1)).sum(-1)
        return (drop - late)[:, None], late[:, None]


def _best(voted: Tensor, part: Tensor, drop: Tensor, heads: int) -> Tokens:
    """All but the `drop` lowest of a part of the tokens, per head."""
    keep = to_heads(part.sum(-1) - drop, heads).clamp(min=0)
    part = to_heads(part, heads).expand_as(voted)
    return dispatch.run("select_tokens", voted.device.type, voted.masked_fill(~part, float("-inf")), keep)


EXAMPLES = (
    TokenCoverage(tau=0.05, window=4, pool=3, min_tokens=2),
    TokenCoverage(tau=0.2, window=3, pool=1, min_tokens=0, per="group"),
    TokenCoverage(tau=0.3, window=3, pool=3, min_tokens=0, per="layer"),
    TokenCoverage(tau=0.7, window=1, pool=3, min_tokens=0),
)
DENSE = TokenCoverage(tau=0.0)
