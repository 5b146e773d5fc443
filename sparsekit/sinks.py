"""How much attention the first keys hold, the sinks, and whether a plan takes them away from queries that rest on them.

Pretrained models rest on the first tokens the attention that a query needs nowhere else. A query that is left without
them gets an output that its model never had in training, however little they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fills import SINKS, SlidingWindow
from .plan import Plan
from .problem import Problem

# Mass from which on sinks are rested on, mean over the heads of a layer, and of one query. The embedded model, of which
# a window alone loses nothing, has at most .045 in a layer of real text; Qwen2.5-Coder-0.5B .12 to .44 in layers 3 to
# 22, SmolLM2-135M .21 to .79 in layers 12 to 29, and both lose answers there without sinks.
RESTS = 0.1
# The same of one head where its layer as a whole does not reach that: the embedded model has at most .28 in a head.
HEAD_RESTS = 0.5


@dataclass(frozen=True)
class Sinks:
    """Attention on the first SINKS keys, measured on sampled queries that see other keys too."""

    heads: tuple[float, ...]  # by query head: dense probability on them, mean over queries and sequences, in [0, 1]
    left_out: float = 0.0  # part of the queries, over all heads, that rest on them and lose most of it, in [0, 1]
    mend: str = ""  # what would give them back to most of those

    @property
    def mean(self) -> float:
        """Return the mass, mean over the heads."""
        return sum(self.heads) / len(self.heads)

    @property
    def largest(self) -> float:
        """Return the mass of the head with most of it."""
        return max(self.heads)

    @property
    def head(self) -> int:
        """Return that head."""
        return self.heads.index(self.largest)

    @property
    def matters(self) -> bool:
        """Return whether queries rest on them and the plan takes them away from some."""
        return self.left_out > 0 and (self.mean >= RESTS or self.largest >= HEAD_RESTS)

    def figures(self) -> dict[str, float]:
        """Return the mass as a file has it."""
        return {"keys": SINKS, "mean": self.mean, "largest": self.largest, "head": self.head}

    def warning(self) -> str | None:
        """Return in one line that the plan leaves out what attention rests on; None where that is not so."""
        if not self.matters:
            return None
        return (
            f"attention puts {share(self.mean)} of its mass on the first {SINKS} tokens (head {self.head}: "
            f"{share(self.largest)}), and the plan leaves them out for {share(self.left_out)} of the queries: "
            f"{self.mend}"
        )


def share(x: float) -> str:
    """Return a part in percent; one that is more than none is not 0%."""
    return "less than 1%" if 0 < x < 0.01 else f"{x:.0%}"


def measure(problem: Problem, rows: Tensor, plan: Plan | None = None) -> Sinks | None:
    """Return the attention on the sinks of query indices `rows` [R], and what a plan leaves out of it; float64.

    A head at a time, so that no more than [R, K] is held. None if no such query sees more than the sinks.
    """
    H = problem.q.shape[1]
    heads: list[float] = []
    count, lost = 0, dict.fromkeys(("fill", "tokens", "blocks"), 0)  # by what leaves them out
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
    """Return the mean over prompts."""
    heads = tuple(sum(each) / len(found) for each in zip(*(one.heads for one in found), strict=True))
    worst = max(found, key=lambda one: one.left_out)
    return Sinks(heads, sum(one.left_out for one in found) / len(found), worst.mend)


def _mend(plan: Plan | None, what: str) -> str:
    """Return what gives the sinks back that the fill, the tokens or the blocks of a plan leave out."""
    if what == "tokens":
        return "let the token stage keep the first tokens (sinks)"
    if what == "blocks":
        return "let the block stage keep the first block"
    if plan and isinstance(plan.fill, SlidingWindow):
        return f"give SlidingWindow {'more ' if plan.fill.sinks else ''}sinks, not sinks={plan.fill.sinks}"
    return "give dropped queries a SlidingWindow with sinks, not Zeros()"
