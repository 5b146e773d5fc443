"""Token coverage in parts that can be exchanged: who votes, what the budget is of, and what shape the choice has.

With its defaults it is sparsekit's TokenCoverage. Unless `budget` says otherwise, how many tokens a layer keeps is
always what TokenCoverage would keep there, so that a lead about *which* tokens is compared at equal density.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.leads.probes import Probe
from sparsekit import Plan, Problem, Tokens, dispatch


@dataclass(frozen=True)
class VotedTokens:
    """Keeps the tokens with the most votes; returns a Plan with equal token choices for q and k."""

    tau: float = 0.005  # attention mass that may be dropped, in [0, 1]
    keep: float | None = None  # instead of tau: part of the tokens kept, in (0, 1]
    budget: str = "layer"  # one for a "layer", per "head", or from the votes of all heads in one "pool"
    probe: Probe | None = None  # who votes on which tokens; None: who votes on how many, the last 128 queries
    per: str = "head"  # as TokenCoverage's
    segment: int = 1  # tokens kept or dropped together, aligned, >= 1
    by: str = "sum"  # a segment's votes: their "sum" or their "max"
    forced: Tensor | None = None  # bool [K]: kept whatever the votes are
    window: int = 128
    pool: int = 7
    min_tokens: int = 1024
    chooses: ClassVar[str] = "tokens"

    def __call__(self, problem: Problem) -> Plan:
        kept = self.choose(problem)
        return Plan() if kept is None else Plan(kept, kept)

    def choose(self, p: Problem) -> Tokens | None:
        """The tokens kept, None for all; of a problem with as many queries as keys and without padding."""
        assert p.full and p.q.shape[2] == p.k.shape[2], "leads are about whole prompts"
        K = p.k.shape[2]
        if (self.tau == 0 and self.keep is None) or K <= self.min_tokens + self.window:
            return None
        votes, mean = self._votes(p, dispatch.run("window_scores", p.q.device.type, p, self.window)[0])
        drop = self._drop(votes, mean)  # [B, h]
        if self.probe is not None:
            votes = self._votes(p, self.probe(p))[0]
        votes = self._shared(p, votes)
        if self.forced is not None:
            votes = votes.masked_fill(self.forced, torch.inf)
        keep = torch.maximum((K - drop).expand(votes.shape[:2]), (votes == torch.inf).sum(-1))
        return self._segments(votes, keep)

    def _votes(self, p: Problem, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Smoothed, inf for the last tokens; and the mean over heads."""
        K = torch.tensor(p.k.shape[2])
        return dispatch.run("token_votes", p.q.device.type, scores, K - self.window, K, self.pool)

    def _shared(self, p: Problem, votes: Tensor) -> Tensor:
        heads = {"head": p.q.shape[1], "group": p.k.shape[1], "layer": 1}[self.per]
        return votes.unflatten(1, (heads, -1)).mean(2)

    def _drop(self, votes: Tensor, mean: Tensor) -> Tensor:
        """[B, 1], or per head [B, H]: how many tokens."""
        B, H, K = votes.shape
        most = K - self.window - self.min_tokens
        if self.keep is not None:
            return votes.new_full((B, 1), min(K - round(self.keep * K), most), dtype=torch.long)
        run = lambda rows, n: dispatch.run("token_budget", rows.device.type, rows, self.tau, n)  # noqa: E731
        if self.budget == "layer":
            return run(mean, torch.tensor(most))[:, None]
        if self.budget == "head":
            return run(votes.flatten(0, 1).contiguous(), torch.tensor(most)).view(B, H)
        pooled = votes.flatten(1)
        total = torch.nan_to_num(pooled, 0.0, 0.0).sum(-1)
        out = dispatch.run("coverage_mask", votes.device.type, pooled.contiguous(), self.tau * total, False)
        return out.view(B, H, K).sum(-1).clamp(max=most)

    def _segments(self, votes: Tensor, keep: Tensor) -> Tokens:
        """The `keep` [B, h] tokens with the most votes, rounded up to whole segments."""
        select = lambda scores, n: dispatch.run("select_tokens", votes.device.type, scores, n)  # noqa: E731
        if self.segment == 1:
            return select(votes, keep)
        m, K = self.segment, votes.shape[-1]
        fill = 0.0 if self.by == "sum" else -torch.inf
        runs = torch.nn.functional.pad(votes, (0, -K % m), value=fill).unflatten(-1, (-1, m))
        runs = runs.sum(-1) if self.by == "sum" else runs.amax(-1)
        n = torch.maximum(-(-keep // m), (runs == torch.inf).sum(-1))
        return Tokens.of(select(runs, n).kept().repeat_interleave(m, -1)[..., :K])
