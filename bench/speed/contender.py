"""A contender: a function to time, and the error of its output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekit import Plan, Problem, oracle
from sparsekit.execute import Clock

ROWS = 64  # query rows that the error is measured on


class Skipped(Exception):
    """Raised with the reason why something cannot run here."""


@dataclass(frozen=True)
class Contender:
    """One function to time.

    `run(clock)` computes, with `clock(step)` around its steps. With a `plan` it returns the attention output
    [B, H, Q, Dv] that the plan means, and its error is measured. Without one it is a part that has no output.
    """

    case: str
    backend: str  # a backend of sparsekit, a dense kernel, or "authors"
    kind: str  # "ours", "dense" (a yardstick) or "peer"
    run: Callable[[Clock], Any]
    plan: Plan | None = None
    what: str = "attend"  # the pipeline, as a spec; otherwise a name for what is timed

    @property
    def key(self) -> tuple[str, str]:
        return self.case, self.backend


@dataclass(frozen=True)
class Truth:
    """A plan's output on sampled rows in float64, and the error of plain torch in the precision of the inputs."""

    rows: Tensor  # [R], query indices
    o: Tensor  # [B, H, R, Dv], float64
    plain: float  # |plain torch - o| / |o|

    @classmethod
    def of(cls, p: Problem, plan: Plan) -> "Truth":
        """Compute it head by head: float64 keys of a million tokens take 1 GB for one head, too much for 32 heads."""
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
        """Return |output - o| / |o|; `output` is at full length."""
        return ((output[:, :, self.rows].double() - self.o).norm() / self.o.norm()).item()


def work(p: Problem, plan: Plan) -> int:
    """Return the number of pairs that the plan computes, counted head by head to save memory."""
    H = p.q.shape[1]
    return sum(int(plan.head(h, H).work(p.head(h)).sum()) for h in range(H))


def active(p: Problem, plan: Plan) -> int:
    """Return the number of pairs in whole tiles of the block lists, a block-sparse kernel's work; or `work`."""
    if plan.blocks is None:
        return work(p, plan)
    m, n = plan.blocks.size
    return int(plan.blocks.counts.sum()) * m * n * p.q.shape[1] // plan.blocks.counts.shape[1]
