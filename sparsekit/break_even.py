"""Whether sparse attention can be worth its overhead, by a model of both times with constants measured on a GPU.

dense       pairs x head dim over the rate that dense attention reaches
overhead    of each stage, with the compressing it asks for: the host's time for a call, or, if that is more, the GPU's,
            which grows with keys x query heads
What a plan saves is known only once it has been decided, and paid for: it is taken to be SAVED of the dense time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .dispatch import capability
from .problem import Problem

SAVED = 0.5  # part of the dense time


@dataclass(frozen=True)
class Price:
    """What a step costs."""

    call: float  # ms
    token: float  # ms for a million keys x query heads

    def ms(self, problem: Problem) -> float:
        B, H = problem.q.shape[:2]
        return max(self.call, self.token * B * H * problem.k.shape[2] / 1e6)


@dataclass(frozen=True)
class Prices:
    """Of one kind of GPU: dense attention, and stages by their names."""

    rate: float  # TFLOP/s of dense attention
    stages: dict[str, Price]


# by compute capability, from bench/records; BlockThreshold's is from what recipes took beyond their part of the dense
# time in the record of the 0.5B model
MEASURED = {
    (9, 0): Prices(
        700.0,
        {"TokenCoverage": Price(2.0, 0.6), "FlexPrefill": Price(3.7, 1.3), "BlockThreshold, mean": Price(0.4, 2.0)},
    )
}


@dataclass(frozen=True)
class Estimate:
    """The model's times of a problem, in ms."""

    dense: float
    overhead: float

    @property
    def worth(self) -> bool:
        return self.overhead < SAVED * self.dense


def prices(device: torch.device) -> Prices | None:
    """What steps cost on a device; None if that has not been measured."""
    return MEASURED.get(capability(device)) if device.type == "cuda" else None


def estimate(stages: Sequence[Any], problem: Problem) -> Estimate | None:
    """None where a stage, or the device, has not been measured."""
    known = prices(problem.q.device)
    names = [_name(stage) for stage in stages]
    if known is None or not all(name in known.stages for name in names):
        return None
    (B, H, Q, D), K = problem.q.shape, problem.k.shape[2]
    pairs = Q * (K - (Q - 1) / 2) if problem.causal else Q * K
    if problem.window is not None:
        pairs = min(pairs, Q * problem.window)
    dense = 2 * B * H * pairs * (D + problem.v.shape[3]) / known.rate / 1e9
    return Estimate(dense, sum(known.stages[name].ms(problem) for name in names))


def _name(stage: Any) -> str:
    """Return the name of what a stage does; how its queries score is another amount of work."""
    queries = getattr(stage, "queries", None)
    return f"{type(stage).__name__}, {queries}" if queries else type(stage).__name__


def worth_it(stages: Sequence[Any], limit: str | int, problem: Problem) -> bool:
    """Whether to run the stages: from `limit` keys on; if that is "auto", by the estimate, where there is one."""
    if limit != "auto":
        return int(limit) <= 0 or _keys(problem) >= int(limit)
    found = estimate(stages, problem) if stages else None
    return found is None or found.worth


def _keys(problem: Problem) -> int:
    """How many keys the longest sequence has; waits for the device if there is padding."""
    return problem.k.shape[2] if problem.full else int(problem.lengths()[1].max())


def reason(stages: Sequence[Any], limit: str | int, problem: Problem) -> str | None:
    """In words, what decides; None if nothing does."""
    if not stages or limit == 0:
        return None
    runs = "runs the stages" if worth_it(stages, limit, problem) else "runs dense"
    if limit != "auto":
        return f"Break-even is set to {limit} keys: it {runs}."
    found = estimate(stages, problem)
    if found is None:
        return None
    return (
        f"Break-even: by the times measured on such a GPU dense attention takes {found.dense:.2f} ms and the stages, "
        f"before anything attends, {found.overhead:.2f} ms: it {runs}; break_even=0 always runs the stages."
    )
