"""Dynamic Token Coverage: keep, in each head, the tokens the last queries attend to (Token Sparse Attention).

Scored: every token before the last `voters`, by the mean attention probability that the last `voters` queries give it,
averaged over `pool` neighbours. Kept: enough tokens that the mass of the dropped ones, averaged over heads and
normalised, stays near `tau`. The number is the same for all heads; each head keeps its own best tokens. Always kept:
the last `voters` tokens, the first `sinks` tokens, to which pretrained models give the attention that a query needs
nowhere else, and at least `min_tokens` besides the voters. Queries and keys keep the same tokens.
With fewer queries than keys (a prefill chunk) the budget has a part for the chunk's tokens and a part for the earlier
keys. Each head fills each part with its own tokens, so that all heads keep equally many queries and keys.
A problem with a sliding window keeps every token: most tokens lie outside the window of the last queries, so they have
no votes. Its attention is linear in the length anyway.
Source: arXiv:2602.03216, section 2 and Algorithm 1; defaults from the authors' code.

Differs from the authors' code: the first tokens are kept (theirs may drop them, as `sinks=0` does); scores stay in
float32 or wider (theirs are rounded to the dtype of q, which ties most of them); of equal scores the earlier token wins
(theirs: arbitrary); any number of voters works (theirs returns inf unless it is a multiple of a tuned tile); an even
`pool` is refused (theirs makes one score too many); batches, grouped heads and chunks run.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import dispatch
from ..checks import check_amount, check_choice, check_ratio, check_size
from ..fills import SINKS
from ..former_names import renamed
from ..plan import Plan, Tokens
from ..problem import Problem, to_heads


@renamed(voters="window")
@dataclass(frozen=True)
class TokenCoverage:
    """A stage that keeps the tokens the last queries attend to; its Plan has the same tokens for queries and keys.

    Args:
        tau: attention mass that may be *dropped*, in [0, 1]; 0 keeps every token
        voters: number of last queries that vote, in tokens, >= 1; they are always kept
        pool: neighbours that a score is averaged over, in tokens, odd, >= 1
        min_tokens: least number of tokens kept besides the voters, >= 0
        per: one choice of tokens per query "head", per key/value "group" (K, V stay grouped), or for the "layer"
        sinks: number of first tokens, which are always kept, >= 0
    """

    tau: float = 0.005
    voters: int = 128
    pool: int = 7
    min_tokens: int = 1024
    per: Literal["head", "group", "layer"] = "head"
    sinks: int = SINKS
    chooses: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        check_ratio("tau", self.tau)
        check_amount(self, "voters", 1)
        check_size("pool", self.pool, odd=True)
        check_amount(self, "min_tokens", 0)
        check_amount(self, "sinks", 0)
        check_choice("per", self.per, ("head", "group", "layer"))

    def __call__(self, problem: Problem) -> Plan:
        p = problem
        Q, (G, K) = p.q.shape[2], p.k.shape[1:3]
        p.require_queries_last("TokenCoverage")
        least = max(self.min_tokens, self.sinks)
        if self.tau == 0 or p.sliding_window is not None or K <= least + min(self.voters, Q):
            return Plan()
        n_q, n_k = p.lengths()
        earlier, scored = n_k - n_q, n_k - n_q.clamp(max=self.voters)
        scores = dispatch.run("window_scores", p.q.device.type, p, self.voters)[0]
        votes, mean = dispatch.run("token_votes", p.q.device.type, scores, scored, n_k, self.pool, self.sinks)
        mean = p.over_all_heads(mean)
        heads = {"head": p.q.shape[1], "group": G, "layer": 1}[self.per]
        # heads that share a choice choose by their mean vote; heads that share positions share a choice
        heads = max(heads, p.k_pos.shape[1])
        if heads == 1 and self.per == "layer":
            votes = torch.where(votes[:, 0].isinf(), votes[:, 0], mean)[:, None]
        elif heads < votes.shape[1]:
            votes = votes.unflatten(1, (heads, -1)).mean(2)
        most = (scored - least).clamp(min=0)
        if most.ndim:
            most = most.squeeze(-1).amin(1)  # [B]
        drop = dispatch.run("token_budget", p.q.device.type, mean, self.tau, most)[:, None, None]
        if Q == K:
            tokens = _best(votes, n_q - drop)
            return Plan(tokens, tokens)

        slot = torch.arange(K, device=p.q.device)
        early = slot < _to(earlier, heads)  # [K], or [B, heads, K]
        least_voted = -mean.masked_fill(slot < self.sinks, torch.inf)
        dropped = dispatch.run("topk_mask", p.q.device.type, least_voted, drop.flatten())
        late = (dropped & ~(early.any(1) if early.ndim > 1 else early)).sum(-1)[:, None, None]
        queries = _best(votes.masked_fill(early, -torch.inf), n_q - late)
        before = _best(votes.masked_fill(~early, -torch.inf), earlier - (drop - late))
        idx = torch.cat([before.idx, queries.idx], -1).sort(-1).values
        keys = Tokens(idx, K, before.full and queries.full)
        idx = torch.where(queries.idx < K, queries.idx - _to(earlier, heads), Q).int()
        queries = Tokens(idx, Q, queries.full)
        return Plan(queries, keys)


def _best(votes: Tensor, keep: Tensor) -> Tokens:
    """Return the `keep` [B, h, 1] tokens with the most votes, per head."""
    keep = keep if keep.shape[1] == 1 else to_heads(keep, votes.shape[1])
    return dispatch.run("select_tokens", votes.device.type, votes, keep.squeeze(-1))


def _to(x: Tensor, heads: int) -> Tensor:
    """Repeat x for `heads` heads, unless it is 0-d."""
    return to_heads(x, heads) if x.ndim else x


EXAMPLES = (
    TokenCoverage(tau=0.05, voters=4, pool=3, min_tokens=2, sinks=0),
    TokenCoverage(tau=0.2, voters=3, pool=1, min_tokens=0, sinks=1, per="group"),
    TokenCoverage(tau=0.3, voters=3, pool=3, min_tokens=0, sinks=2, per="layer"),
    TokenCoverage(tau=0.7, voters=1, pool=3, min_tokens=0, sinks=3),
)
DENSE = TokenCoverage(tau=0.0)
