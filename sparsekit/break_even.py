"""Whether sparse attention can be worth its overhead, by a model of both times with constants measured on a GPU.

dense       pairs x head dim over the rate that dense attention reaches
overhead    of each stage, and of compressing and decompressing: so much a call, mostly the host's, and a token and head
What a plan saves is known only once it has been decided, and paid for: it is taken to be SAVED of the dense time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .problem import Problem

SAVED = 0.5  # part of the dense time


@dataclass(frozen=True)
class Price:
    """What a step costs."""

    call: float  # ms
    token: float  # ms for a million keys x query heads

    def ms(self, problem: Problem) -> float:
        B, H = problem.q.shape[:2]
        return self.call + self.token * B * H * problem.k.shape[2] / 1e6


@dataclass(frozen=True)
class Prices:
    """Of one kind of GPU: dense attention, and steps by the name of their stage; "" is compress and decompress."""

    rate: float  # TFLOP/s of dense attention
    steps: dict[str, Price]


# by compute capability
MEASURED = {
    (9, 0): Prices(650.0, {"TokenCoverage": Price(1.6, 0.1), "FlexPrefill": Price(2.2, 0.5), "": Price(0.2, 0.17)}),
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
    return MEASURED.get(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def estimate(stages: Sequence[Any], problem: Problem) -> Estimate | None:
    """None where a stage, or the device, has not been measured."""
    known = prices(problem.q.device)
    names = [type(stage).__name__ for stage in stages]
    if known is None or not all(name in known.steps for name in names):
        return None
    if any(stage.chooses == "tokens" for stage in stages):
        names.append("")
    (B, H, Q, D), K = problem.q.shape, problem.k.shape[2]
    pairs = Q * (K - (Q - 1) / 2) if problem.causal else Q * K
    dense = 2 * B * H * pairs * (D + problem.v.shape[3]) / known.rate / 1e9
    return Estimate(dense, sum(known.steps[name].ms(problem) for name in names))


def worth_it(stages: Sequence[Any], limit: str | int, problem: Problem) -> bool:
    """Whether to run the stages: from `limit` keys on; if that is "auto", by the estimate, where there is one."""
    if limit != "auto":
        return problem.k.shape[2] >= int(limit)
    found = estimate(stages, problem) if stages else None
    return found is None or found.worth


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
