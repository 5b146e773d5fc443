"""Whether sparse attention can be worth its overhead, by a model of both times with constants measured on a device.

dense       pairs x head dim over the rate that dense attention reaches
overhead    of each stage, with the compressing it asks for: the host's time for a call, or, if that is more, the
            device's, which grows with keys x query heads
beside      what dropped queries see and what the last queries see, whatever the stages choose: their part of the dense
            time, as if every query of a token stage were dropped
What a plan saves is known only once it has been decided, and paid for: it is taken to be SAVED of the dense time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .prices import price_name, prices
from .problem import Problem

SAVED = 0.5  # part of the dense time


@dataclass(frozen=True)
class Estimate:
    """The model's times of a problem, in ms."""

    dense: float
    overhead: float
    beside: float = 0.0

    @property
    def worth(self) -> bool:
        return self.overhead + self.beside < SAVED * self.dense


def estimate(stages: Sequence[Any], problem: Problem, decompress: Any = None) -> Estimate | None:
    """None where a stage, or the device, has not been measured. `decompress` is a pipeline's Decompress."""
    known = prices(problem.q.device)
    names = [price_name(stage) for stage in _each(stages)]
    if known is None or not all(name in known.stages for name in names):
        return None
    (B, H, Q, D), K = problem.q.shape, problem.k.shape[2]
    pairs = Q * (K - (Q - 1) / 2) if problem.causal else Q * K
    if problem.window is not None:
        pairs = min(pairs, Q * problem.window)
    dense = 2 * B * H * pairs * (D + problem.v.shape[3]) / known.rate / 1e9
    beside = 0.0
    if decompress:
        fill = decompress.fill if any(getattr(stage, "chooses", None) == "tokens" for stage in stages) else None
        near = getattr(fill, "window", 0) + getattr(fill, "sinks", 0)
        beside = dense * min((min(decompress.dense_last, Q) * K + Q * min(near, K)) / pairs, 1.0)
    return Estimate(dense, sum(known.stages[name].ms(problem) for name in names), beside)


def _each(stages: Sequence[Any]) -> Iterator[Any]:
    """Yield the stages that choose: the patterns of a Union in its place."""
    for stage in stages:
        yield from _each(stage.patterns) if hasattr(stage, "patterns") else (stage,)


def worth_it(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> bool:
    """Whether to run the stages: from `limit` keys on; if that is "auto", by the estimate, where there is one."""
    if limit != "auto":
        return int(limit) <= 0 or _keys(problem) >= int(limit)
    found = estimate(stages, problem, decompress) if stages else None
    return found is None or found.worth


def _keys(problem: Problem) -> int:
    """How many keys the longest sequence has; waits for the device if there is padding."""
    return problem.k.shape[2] if problem.full else int(problem.lengths()[1].max())


def reason(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> str | None:
    """In words, what decides; None if nothing does."""
    if not stages or limit == 0:
        return None
    runs = "runs the stages" if worth_it(stages, limit, problem, decompress) else "runs dense"
    if limit != "auto":
        return f"Break-even is set to {limit} keys: it {runs}."
    found = estimate(stages, problem, decompress)
    if found is None:
        return None
    last = f", and {found.beside:.2f} ms for what is never left out" if found.beside else ""
    return (
        f"Break-even: by the times measured on such a device dense attention takes {found.dense:.2f} ms and the "
        f"stages, before anything attends, {found.overhead:.2f} ms{last}: it {runs}; break_even=0 always runs the "
        "stages."
    )
