"""The attention on the sinks, the first keys, and the queries from which a plan drops sinks that they need.

Pretrained models give the first tokens the attention that a query needs nowhere else. A query that does not see them
gets an output that its model never had in training, even if their values are small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fills import SINKS, SlidingWindow
from .plan import Plan
from .problem import Problem

# Mass from which on a layer needs its sinks, as the mean over heads, and from which on a query does. The embedded
# model, which loses nothing with a window alone, has at most .045 in a layer on real text; Qwen2.5-Coder-0.5B has .12
# to .44 in layers 3 to 22, SmolLM2-135M .21 to .79 in layers 12 to 29, and both lose answers there without sinks.
RESTS = 0.1
# The same for one head, where its layer's mean is less than that: the embedded model has at most .28 in a head.
HEAD_RESTS = 0.5


@dataclass(frozen=True)
class Sinks:
    """The attention on the first SINKS keys, measured on sampled queries that see other keys too."""

    heads: tuple[float, ...]  # by query head, dense probability on the sinks, mean over queries, in [0, 1]
    left_out: float = 0.0  # part of all heads' queries that need the sinks and lose most of them, in [0, 1]
    mend: str = ""  # advice that gives the sinks back to most of those queries

    @property
    def mean(self) -> float:
        """The mass on the sinks, mean over heads."""
        return sum(self.heads) / len(self.heads)

    @property
    def largest(self) -> float:
        """The mass on the sinks in the head with most of it."""
        return max(self.heads)

    @property
    def head(self) -> int:
        """The head with most mass on the sinks."""
        return self.heads.index(self.largest)

    @property
    def matters(self) -> bool:
        """Whether the layer needs its sinks and the plan drops them for some queries."""
        return self.left_out > 0 and (self.mean >= RESTS or self.largest >= HEAD_RESTS)

    def figures(self) -> dict[str, float]:
        """Return the figures that a file holds."""
        return {"keys": SINKS, "mean": self.mean, "largest": self.largest, "head": self.head}

    def warning(self) -> str | None:
        """Return in one line that the plan drops sinks that matter, or None."""
        if not self.matters:
            return None
        return (
            f"attention puts {share(self.mean)} of its mass on the first {SINKS} tokens (head {self.head}: "
            f"{share(self.largest)}), and the plan leaves them out for {share(self.left_out)} of the queries: "
            f"{self.mend}"
        )


def share(x: float) -> str:
    """Return a part in percent; one above 0 is never 0%."""
    return "less than 1%" if 0 < x < 0.01 else f"{x:.0%}"


def measure(problem: Problem, rows: Tensor, plan: Plan | None = None) -> Sinks | None:
    """Measure the attention on the sinks for query indices `rows` [R], and the part that a plan drops, in float64.

    It takes a head at a time, with [R, K] in memory. Return None if no such query sees other keys than the sinks.
    """
    H = problem.q.shape[1]
    heads: list[float] = []
    count, lost = 0, dict.fromkeys(("fill", "tokens", "blocks"), 0)  # by the part of the plan that drops them
    for h in range(H):
        one = problem.head(h)
        visible = one.visible(rows)[:, 0]
        sink = one.k_pos[:, 0, None, :SINKS] < SINKS  # positions ascend: no sink is in a later slot
        counts = (visible & (one.k_pos[:, 0, None] >= SINKS)).any(-1)  # [B, R]
        scores = one.q[:, 0, rows].double() @ one.k[:, 0].double().mT * one.scale
        probability = scores.masked_fill_(~visible, -torch.inf).softmax(-1)[..., :SINKS].masked_fill(~sink, 0.0)
        if not counts.any():
            return None
        heads.append(probability.sum(-1)[counts].mean().item())
        if plan is None:
            continue
        part = plan.head(h, H)
        out = (probability * ~part.pairs(one, rows)[:, 0, :, :SINKS]).sum(-1)
        loses = counts & (out >= RESTS) & (2 * out > probability.sum(-1))
        dropped, of_tokens = part.dropped(one)[:, 0, rows], torch.zeros_like(loses)
        if part.keys:
            of_tokens = 2 * (probability * ~part.keys.kept()[..., :SINKS]).sum(-1) > out
        for what, those in (("fill", dropped), ("tokens", ~dropped & of_tokens), ("blocks", ~dropped & ~of_tokens)):
            lost[what] += int((loses & those).sum())
        count += int(counts.sum())
    if not any(lost.values()):
        return Sinks(tuple(heads))
    return Sinks(tuple(heads), sum(lost.values()) / count, _mend(plan, max(lost, key=lambda what: lost[what])))


def over_prompts(found: Sequence[Sinks]) -> Sinks:
    """Return the mean over prompts, with the advice of the worst prompt."""
    heads = tuple(sum(each) / len(found) for each in zip(*(one.heads for one in found), strict=True))
    worst = max(found, key=lambda one: one.left_out)
    return Sinks(heads, sum(one.left_out for one in found) / len(found), worst.mend)


def _mend(plan: Plan | None, what: str) -> str:
    """Return advice that gives back the sinks which the fill, the tokens or the blocks of a plan drop."""
    if what == "tokens":
        return "let the token stage keep the first tokens (sinks)"
    if what == "blocks":
        return "let the block stage keep the first block"
    if plan and isinstance(plan.fill, SlidingWindow):
        return f"give SlidingWindow {'more ' if plan.fill.sinks else ''}sinks, not sinks={plan.fill.sinks}"
    return "give dropped queries a SlidingWindow with sinks, not Zeros()"
