"""What is timed, and whether its answer is right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekit import Plan, Problem, oracle
from sparsekit.execute import Clock

ROWS = 64  # query rows the error is measured on


class Skipped(Exception):
    """Why something cannot run here, in words."""


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    `run(clock)` computes, with `clock(step)` around its steps. If `plan` is given it returns the attention output
    [B, H, Q, Dv] that the plan means, and is judged by it; if not, it is a part without an output of its own.
    """

    case: str
    backend: str  # who computes: a backend of sparsekit, a dense kernel, or "authors"
    kind: str  # "ours", "dense" (a yardstick) or "peer"
    run: Callable[[Clock], Any]
    plan: Plan | None = None
    what: str = "attend"  # the pipeline, as a spec; or what else is timed

    @property
    def key(self) -> tuple[str, str]:
        return self.case, self.backend


@dataclass(frozen=True)
class Truth:
    """A plan's output on sampled rows in float64, and how far plain torch in the precision of the inputs is off."""

    rows: Tensor  # [R], query indices
    o: Tensor  # [B, H, R, Dv], float64
    plain: float  # |plain torch - o| / |o|

    @classmethod
    def of(cls, p: Problem, plan: Plan) -> "Truth":
        """Head by head: the float64 keys of one head of a million tokens are 1 GB, and those of 32 heads too much."""
        Q, H = p.q.shape[2], p.q.shape[1]
        rows = torch.linspace(0, Q - 1, min(ROWS, Q), dtype=torch.float64, device=p.q.device).round().long()
        found, off = [], torch.zeros((), dtype=torch.float64, device=p.q.device)
        for h in range(H):
            one, mine = p.head(h), plan.head(h, H)
            truth = oracle(one, mine, rows).o
            scores = one.q[:, :, rows] @ one.k.mT * one.scale
            weights = scores.masked_fill(~mine.pairs(one, rows), float("-inf")).softmax(-1).nan_to_num(0.0)
            off += (weights @ one.v - truth).square().sum()
            found.append(truth)
        o = torch.cat(found, 1)
        return cls(rows, o, (off.sqrt() / o.norm()).item())

    def error(self, output: Tensor) -> float:
        """|output - o| / |o|; `output` is at full length."""
        return ((output[:, :, self.rows].double() - self.o).norm() / self.o.norm()).item()


def work(p: Problem, plan: Plan) -> int:
    """Pairs the plan computes, head by head for the same reason."""
    H = p.q.shape[1]
    return sum(int(plan.head(h, H).work(p.head(h)).sum()) for h in range(H))


def active(p: Problem, plan: Plan) -> int:
    """Pairs in the tiles of the plan's lists, whole: what a block-sparse kernel has to do. Without lists, `work`."""
    if plan.blocks is None:
        return work(p, plan)
    m, n = plan.blocks.size
    return int(plan.blocks.counts.sum()) * m * n * p.q.shape[1] // plan.blocks.counts.shape[1]
