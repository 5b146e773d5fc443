"""Queries that also see their neighbours: a band of near keys merged, by log-sum-exp, into what the plan computes.

A plan's fill gives dropped queries their last keys; here kept queries get theirs too, though those were dropped as
tokens, and dropped queries may see a few far keys beside their window. The two key sets are disjoint, so the outputs
merge exactly. Plain torch, in pieces: no [H, Q, K] is ever made.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.leads.tokens import VotedTokens
from sparsekit import Output, Pipeline, Plan, Problem, SlidingWindow, Tokens, attend
from sparsekit.pipeline import Clock
from sparsekit.problem import to_heads

ROWS, BLOCKS = 128, 64  # queries of a block of the band, and blocks computed together


@dataclass(frozen=True)
class NearPlan(Plan):
    """A plan of tokens whose queries see more: kept ones their last `near` keys, dropped ones the keys `far` too.

    `fill`, a SlidingWindow without sinks, or None, is what dropped queries get besides.
    """

    near: int = 0  # tokens, the query's own among them; 0: none
    far: Tokens | None = None

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Tensor:
        Q, H, device = problem.q.shape[2], problem.q.shape[1], problem.q.device
        rows = torch.arange(Q, device=device) if rows is None else rows
        distance = rows[:, None] - torch.arange(problem.k.shape[2], device=device)
        visible = problem.visible(rows)
        keys = lambda t: visible if t is None else visible & to_heads(t.kept(), H)[..., None, :]  # noqa: E731
        pairs = keys(self.keys) | (visible & (distance < self.near))
        if self.queries is None:
            return pairs
        window = self.fill.window if isinstance(self.fill, SlidingWindow) else 0
        filled = visible & (distance < window)
        if self.far is not None:
            filled = filled | keys(self.far)
        return torch.where(to_heads(self.queries.kept(), H)[..., rows, None], pairs, filled)

    def work(self, problem: Problem) -> Tensor:
        H = problem.q.shape[1]
        total = to_heads(_seen(problem, self.keys, self.near), H)
        if self.queries is not None:
            window = self.fill.window if isinstance(self.fill, SlidingWindow) else 0
            none = Tokens(self.queries.idx[..., :0], self.queries.n)
            filled = to_heads(_seen(problem, self.far or none, window), H)
            total = torch.where(to_heads(self.queries.kept(), H), total, filled)
        return total.sum(-1).expand(problem.q.shape[:2])


def _seen(problem: Problem, keys: Tokens | None, near: int) -> Tensor:
    """[B, h, Q]: how many of `keys` (None: all) and of its last `near` keys each query sees."""
    K = problem.k.shape[2]
    if keys is None:
        return torch.arange(1, K + 1, device=problem.q.device).expand(problem.q.shape[0], 1, K)
    kept = keys.kept()
    others = (~kept).cumsum(-1)
    return kept.cumsum(-1) + others - pad(others, (near, 0))[..., :K] if near else kept.cumsum(-1)


def band(problem: Problem, window: int, keys: Tensor, rows: Tensor) -> Output:
    """Attention of the queries `rows` [B, h, Q] over those of their last `window` keys that are in `keys` [B, h, K].

    Other queries get zero, lse -inf. As many queries as keys, no padding.
    """
    H, L = problem.q.shape[1:3]
    spare, wide = -L % ROWS, ROWS + window - 1
    behind = lambda x: pad(x, (0, 0, window - 1, spare)).unfold(2, wide, ROWS)  # noqa: E731  # [B, g, I, ., wide]
    q = pad(problem.q, (0, 0, 0, spare)).unflatten(2, (-1, ROWS))  # [B, H, I, ROWS, D]
    k, v = behind(problem.k), behind(problem.v)
    open_ = behind(to_heads(keys, H)[..., None])  # [B, H, I, 1, wide]
    asks = pad(to_heads(rows, H), (0, spare)).unflatten(2, (-1, ROWS))[..., None]
    ahead = torch.arange(wide, device=q.device) - torch.arange(ROWS, device=q.device)[:, None]
    near = (ahead >= 0) & (ahead < window)  # slot s of a block is the key s - (window - 1) from its first query
    outs, lses = [], []
    for at in range(0, q.shape[2], BLOCKS):
        some = slice(at, at + BLOCKS)
        one = lambda x: to_heads(x[:, :, some], H)  # noqa: B023, E731
        scores = q[:, :, some] @ one(k)
        seen = near & one(open_) & asks[:, :, some]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(problem.scale)
        scores = scores.masked_fill_(~seen, float("-inf"))
        lse = scores.logsumexp(-1)
        weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)
        outs.append(weights.to(q.dtype) @ one(v).mT)
        lses.append(lse)
    o, lse = torch.cat(outs, 2).flatten(2, 3), torch.cat(lses, 2).flatten(2, 3)
    return Output(o[:, :, :L], lse[:, :, :L])


def attend_near(problem: Problem, plan: NearPlan, backend: str = "auto") -> Output:
    """Exactly the pairs of the plan."""
    plain = Plan(plan.queries, plan.keys, fill=plan.fill if plan.far is None else None)
    out = attend(problem, plain, backend=backend)
    dropped = plan.dropped(problem)
    if plan.near and plan.keys is not None:
        out = out.merge(band(problem, plan.near, ~plan.keys.kept(), ~dropped))
    if plan.far is not None and plan.queries is not None:
        out = out.merge(attend(problem, Plan(Tokens.of(dropped), plan.far), backend=backend))
        if isinstance(plan.fill, SlidingWindow):
            out = out.merge(band(problem, plan.fill.window, ~plan.far.kept(), dropped))
    return out


class Near(Pipeline):
    """A stage that chooses tokens, and what its queries see besides: see NearPlan."""

    def __init__(
        self, stage: Callable[[Problem], Plan], *, near: int = 0, fill: SlidingWindow | None = None, far: int = 0
    ) -> None:
        super().__init__([stage], break_even=0)
        self.near, self.fill, self.far = near, fill, far

    def decide(self, problem: Problem, clock: Clock = nullcontext) -> Plan:
        plan = self.stages[0](problem)
        if plan.queries is None and plan.keys is None:
            return plan
        far = None
        if self.far and plan.queries is not None:
            # the last tokens are always chosen, and a dropped query, before them, sees none of those
            share = (self.far + VotedTokens.window) / problem.k.shape[2]
            far = VotedTokens(keep=min(share, 1.0), min_tokens=0).choose(problem)
        return NearPlan(plan.queries, plan.keys, fill=self.fill, near=self.near, far=far)

    def run(self, problem: Problem, plan: Plan | None = None, clock: Clock = nullcontext) -> tuple[Plan, Output]:
        plan = self.decide(problem) if plan is None else plan
        return plan, attend_near(problem, plan) if isinstance(plan, NearPlan) else attend(problem, plan)


@dataclass(frozen=True)
class Sides:
    """Different choices for queries and for keys, both from the last queries' votes; None keeps all of a side."""

    queries: VotedTokens | None
    keys: VotedTokens | None
    chooses: ClassVar[str] = "tokens"

    def __call__(self, problem: Problem) -> Plan:
        queries, keys = (None if side is None else side.choose(problem) for side in (self.queries, self.keys))
        return Plan(queries, keys)
