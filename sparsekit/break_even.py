"""Estimates whether sparse attention is faster than dense attention, from times measured on a device.

dense       pairs x head dim over the rate that dense attention reaches
overhead    time of the stages, compression included: for each stage the host's time of a call, or the device's, which
            grows with keys x query heads, whichever is more
fixed       time of the fill and of the last queries, whatever the stages choose: their part of the dense time, as if
            every query of a token stage were dropped; for the fill its measured time, where there is one
attend      time of the pairs that the plan keeps, at the rate of block lists where there are some, and the fixed cost
            of such a plan
Only a run of the stages, which takes time, shows how much a plan keeps. Before it the estimate adds the pairs that a
stage must keep and the part USUAL of the others. On a CPU the size of a plan is known without a wait. If a plan would
take longer than dense attention, dense attention runs instead, and the search was in vain. Later calls are dense until
the part VAIN of their dense times, and the time that other plans saved, make up for the search. `plan` and `explain`
always search.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from .plan import Plan
from .prices import LEAST, SPAN, Prices, may_measure, measured_once, price_name, prices
from .problem import Problem

GUESS = 0.25  # part that a stage keeps of the pairs it need not keep, where there is no measurement
# the same as a function of a stage's parameters: lines through what Qwen2.5-Coder-0.5B and 1.5B kept of prompts of 16K,
# in the records of docs/front.md; models keep more of shorter prompts, less of longer ones
USUAL: Mapping[str, Callable[[Any], float]] = {
    "BlockThreshold": lambda stage: 0.53 + 0.42 * log10(0.01 / stage.alpha),
    "FlexPrefill": lambda stage: 0.58 + 0.34 * log10(0.01 / max(1 - stage.gamma, 1e-9)),
    "TokenCoverage": lambda stage: 0.65 + 0.37 * log10(0.005 / max(stage.tau, 1e-9)),
}
VAIN = 0.01  # part of the dense time that searches in vain may cost, over the calls of a shape
STREAK = 8  # most searches in vain that earlier gains pay for


@dataclass(frozen=True)
class Estimate:
    """The estimated times of a problem, in ms."""

    dense: float
    overhead: float
    attend: float
    fixed: float = 0.0
    kept: float = 1.0  # part of the pairs that is computed

    @property
    def sparse(self) -> float:
        """The time of sparse attention."""
        return self.overhead + self.fixed + self.attend

    @property
    def worth(self) -> bool:
        """Whether sparse attention is faster than dense."""
        return self.sparse < self.dense

    def cause(self) -> str:
        """Return in words why sparse attention is slower, with all times."""
        if self.overhead >= self.dense or self.overhead > max(self.attend, self.fixed):
            cause = "the prompt is too short"
        elif self.sparse - self.fixed < self.dense or self.fixed > self.attend:
            cause = "the fill and the last queries take too long"
        else:
            cause = "the stages keep too much"
        each = {
            f"{self.overhead:.2f} to decide": self.overhead,
            f"{self.attend:.2f} to attend to about {self.kept:.0%} of the pairs": True,
            f"{self.fixed:.2f} for the fill and the last queries": self.fixed,
        }
        parts = ", ".join(words for words, ms in each.items() if ms)
        return f"{cause}: sparse attention is estimated at {self.sparse:.2f} ms ({parts}), dense at {self.dense:.2f} ms"


def estimate(stages: Sequence[Any], problem: Problem, decompress: Any = None) -> Estimate | None:
    """Estimate the times; None where a stage or the device is not measured. `decompress` is a pipeline's Decompress."""
    known = _prices(problem)
    names = [price_name(stage) for stage in _each(stages)]
    if known is None or not all(name in known.stages for name in names):
        return None
    dense = _dense(problem, known)
    tokens = any(getattr(stage, "chooses", None) == "tokens" for stage in stages)
    fill = decompress.fill if decompress and tokens else None
    fixed = _fixed(problem, known, fill, decompress.dense_last if decompress else 0)
    kept, listed = _expected(stages, problem)
    left = (kept or 1.0) ** 0.5 if known.apart else 1.0  # on a GPU a compressed problem may have the size of the whole
    overhead = sum(
        known.stages[price_name(pattern)].ms(problem, left if stage.chooses == "blocks" else 1.0)
        for stage in stages
        for pattern in _each([stage])
    )
    return Estimate(dense, overhead, _attend(problem, known, kept, listed), fixed, _share(kept, listed))


def gain(plan: Plan, problem: Problem) -> float | None:
    """Return the ms that attention by a plan saves over dense attention on a CPU; None where it is not known."""
    times = decided(plan, problem)
    return times.dense - times.sparse if times else None


def decided(plan: Plan, problem: Problem) -> Estimate | None:
    """Return the times of attention by a plan, without its search, on a CPU; None where they are not known."""
    known = _prices(problem) if problem.q.is_cpu else None
    if known is None or not known.apart:
        return None
    Q, K = problem.q.shape[2], problem.k.shape[2]
    n_q, n_k = (t.idx.shape[-1] if t else n for t, n in ((plan.queries, Q), (plan.keys, K)))
    listed = None
    if b := plan.blocks:
        rows, columns = b.counts.shape[2], b.n
        seen = rows * (columns - (rows - 1) / 2) if problem.causal and rows <= columns else rows * columns
        listed = min(b.counts.float().sum(-1).mean().item() / seen, 1.0)
    kept = (n_q / Q) * (n_k / K) if plan.queries or plan.keys else None
    dense = _dense(problem, known)
    fixed = _fixed(problem, known, plan.fill if plan.queries else None, plan.dense_last)
    return Estimate(dense, 0.0, _attend(problem, known, kept, listed), fixed, _share(kept, listed))


def _share(kept: float | None, listed: float | None) -> float:
    """Return the part of all pairs that tokens keep (`kept`) and then block lists keep (`listed`); None: all."""
    return (1.0 if kept is None else kept) * (1.0 if listed is None else listed)


def search_times(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any) -> Estimate | None:
    """Return the times that decide whether to search again after a search in vain; None: always search.

    Ranks that share a problem's heads must decide the same, so they always search.
    """
    if limit != "auto" or not stages or not problem.q.is_cpu or problem.heads_group is not None:
        return None
    known = prices(problem.q.device)
    return estimate(stages, problem, decompress) if known and known.apart else None


def worth_it(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> bool:
    """Return whether to run the stages: from `limit` keys on, or, if it is "auto", where the estimate says so.

    Where the times of this device are not known they are measured, once; below LEAST keys attention is dense instead.
    Where they cannot be measured the stages run.
    """
    if limit != "auto":
        return int(limit) <= 0 or _keys(problem) >= int(limit)
    times = estimate(stages, problem, decompress) if stages else None
    if times is None and stages and may_measure(list(_each(stages)), problem):
        if problem.k.shape[2] < LEAST:
            return False
        measured_once(problem.q.device)
        times = estimate(stages, problem, decompress)
    return times is None or times.worth


def reason(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> str | None:
    """Return in words why break-even lets the stages run, or None; `why_whole` says why it does not."""
    if not stages or limit == 0 or not worth_it(stages, limit, problem, decompress):
        return None
    if limit != "auto":
        return f"Break-even is set to {limit} keys: it runs the stages."
    times = estimate(stages, problem, decompress)
    if times is None:
        return None
    return (
        f"Break-even: by the times measured on such a device dense attention takes {times.dense:.2f} ms, sparse about "
        f"{times.sparse:.2f} ms: it runs the stages."
    )


def why_whole(pipeline: Any, problem: Problem) -> str:
    """Return in one line why a pipeline (None: dense) computes every pair of a problem, and what to change."""
    if pipeline is None or not pipeline.stages:
        return "its pipeline is dense"
    limit, (Q, tokens) = pipeline.attend.break_even, (problem.q.shape[2], problem.k.shape[2])
    if Q <= (last := pipeline.decompress.dense_last):
        return f"all {Q:,} queries are among the last {last:,}, which see everything: set dense_last below {Q:,}"
    always = "attend(break_even=0) in the spec always runs it"
    if not worth_it(pipeline.stages, limit, problem, pipeline.decompress):
        if limit != "auto":
            return f"{tokens:,} tokens are below the break-even of {limit:,}; {always}"
        times = estimate(pipeline.stages, problem, pipeline.decompress)
        few = f"which is not measured yet: that takes {LEAST:,} tokens"
        cause = f"because {times.cause()}" if times else few
        return f"{tokens:,} tokens are below the break-even on this device, {cause}; {always}"
    if lost := pipeline.lost(problem):
        return f"the plan of {tokens:,} tokens is slower than dense attention, because {lost.cause()}; {always}"
    return f"its pipeline keeps everything at {tokens:,} tokens"


def _prices(problem: Problem) -> Prices | None:
    """Return the prices of a problem's device; ranks that share its heads get the same ones, to decide the same."""
    return prices(problem.q.device) if problem.heads_group is None else prices(problem.q.device, alike=True)


def _pairs(problem: Problem) -> float:
    """Count the pairs of a head that dense attention computes."""
    Q, K = problem.q.shape[2], problem.k.shape[2]
    pairs = Q * (K - (Q - 1) / 2) if problem.causal else Q * K
    return pairs if problem.sliding_window is None else min(pairs, Q * problem.sliding_window)


def _dense(problem: Problem, known: Prices) -> float:
    (B, H, _, D), wide = problem.q.shape, problem.v.shape[3]
    return 2 * B * H * _pairs(problem) * (D + wide) / known.rate / 1e9


def _fixed(problem: Problem, known: Prices, fill: Any, last: int) -> float:
    """Return the time of the fill and of the last queries, which no stage's choice changes."""
    Q, K, dense, pairs = problem.q.shape[2], problem.k.shape[2], _dense(problem, known), _pairs(problem)
    near = getattr(fill, "window", 0) + getattr(fill, "sinks", 0)
    if known.fill is None or not near:
        return dense * min((min(last, Q) * K + Q * min(near, K)) / pairs, 1.0)
    filled = known.fill.ms(problem) * Q / K * max(min(near, K) / SPAN, 1.0)
    return filled + dense * min(min(last, Q) * K / pairs, 1.0)


def _attend(problem: Problem, known: Prices, kept: float | None, listed: float | None) -> float:
    """Return the time of a plan whose tokens keep the part `kept` of the pairs, and whose blocks the part `listed` of
    those; None: all."""
    pairs, steps = _dense(problem, known) * (1.0 if kept is None else kept), 0.0
    if kept is not None:
        steps += known.tokens.ms(problem)
    if listed is not None:
        pairs *= listed * known.slow
        steps += known.blocks.ms(problem, (1.0 if kept is None else kept) ** 0.5)
    return pairs + steps


def _expected(stages: Sequence[Any], problem: Problem) -> tuple[float | None, float | None]:
    """Return the parts of the pairs that token stages, and then block stages, are expected to keep; None: no stage."""
    by_kind: dict[str, list[float]] = {"tokens": [], "blocks": []}
    for stage in stages:
        by_kind[stage.chooses].append(max(_part(pattern, problem) for pattern in _each([stage])))
    kept, listed = (min(parts) if parts else None for parts in by_kind.values())
    return kept, listed


def _part(stage: Any, problem: Problem) -> float:
    """Return the part of the pairs that a built-in stage is expected to keep."""
    Q, K, pairs = problem.q.shape[2], problem.k.shape[2], _pairs(problem)
    if getattr(stage, "keep", None) is not None:
        return float(stage.keep)
    if hasattr(stage, "min_tokens"):
        least = min((stage.min_tokens + stage.voters) / K, 1.0) ** 2
    else:
        size = getattr(stage, "block_size", 1)
        near = getattr(stage, "window", 0) + getattr(stage, "sinks", 0) + size / 2  # whole blocks reach further
        near = min(max(near, 2 * (getattr(stage, "min_budget", None) or 0)), K)
        early = max(near - (K - Q), 0) if problem.causal else 0  # queries near the start see fewer keys
        least = min((Q * near - early**2 / 2) / pairs, 1.0)
    if type(stage).__name__ == "Streaming":
        return least
    usual = USUAL.get(type(stage).__name__)
    return least + (min(max(usual(stage), 0.0), 1.0) if usual else GUESS) * (1 - least)


def _each(stages: Sequence[Any]) -> Iterator[Any]:
    """Yield the stages, with a Union replaced by its patterns."""
    for stage in stages:
        yield from _each(stage.patterns) if hasattr(stage, "patterns") else (stage,)


def _keys(problem: Problem) -> int:
    """Count the keys of the longest sequence; waits for the device if there is padding."""
    return problem.k.shape[2] if problem.full else int(problem.lengths()[1].max())
