"""Whether sparse attention can be worth its overhead, by a model of both times with constants measured on a device.

dense       pairs x head dim over the rate that dense attention reaches
overhead    of each stage, with the compressing it asks for: the host's time for a call, or, if that is more, the
            device's, which grows with keys x query heads
fixed       what dropped queries see and what the last queries see, whatever the stages choose: their part of the dense
            time, as if every query of a token stage were dropped; of the fill its own time, where that was measured
attend      the pairs that are left, at the rate of lists of blocks where there are some, and what attending to such a
            plan costs besides
What a plan leaves is known only once it has been decided, and paid for. Before that it is taken to be what a stage must
keep, and of the rest the part that USUAL says. On a CPU, where a look at the plan waits for nobody, a plan that turns
out to cost more than dense attention is not run either: the search was in vain. Calls search again once VAIN of their
dense times, and what plans that did pay have saved, make up for it. `plan` and `explain` always search.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from .plan import Plan
from .prices import LEAST, SPAN, Prices, may_measure, measured_once, price_name, prices
from .problem import Problem

GUESS = 0.25  # part of the pairs that a stage need not keep, and keeps, if nobody has looked
# the same for stages whose parameters tell: lines through what Qwen2.5-Coder-0.5B and 1.5B kept of prompts of 16K, in
# the records of docs/front.md; of shorter prompts models keep more, of longer ones less
USUAL: Mapping[str, Callable[[Any], float]] = {
    "BlockThreshold": lambda stage: 0.53 + 0.42 * log10(0.01 / stage.alpha),
    "FlexPrefill": lambda stage: 0.58 + 0.34 * log10(0.01 / max(1 - stage.gamma, 1e-9)),
    "TokenCoverage": lambda stage: 0.65 + 0.37 * log10(0.005 / max(stage.tau, 1e-9)),
}
VAIN = 0.01  # part of the dense time that searches in vain may cost, over the calls of a shape
STREAK = 8  # searches in vain that earlier gains pay for, at most


@dataclass(frozen=True)
class Estimate:
    """The model's times of a problem, in ms."""

    dense: float
    overhead: float
    attend: float
    fixed: float = 0.0
    kept: float = 1.0  # part of the pairs that are attended to

    @property
    def sparse(self) -> float:
        return self.overhead + self.fixed + self.attend

    @property
    def worth(self) -> bool:
        return self.sparse < self.dense

    def cause(self) -> str:
        """Return in words what makes sparse attention the slower one, with all times."""
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
    """None where a stage, or the device, has not been measured. `decompress` is a pipeline's Decompress."""
    known = _prices(problem)
    names = [price_name(stage) for stage in _each(stages)]
    if known is None or not all(name in known.stages for name in names):
        return None
    dense = _dense(problem, known)
    tokens = any(getattr(stage, "chooses", None) == "tokens" for stage in stages)
    fill = decompress.fill if decompress and tokens else None
    fixed = _fixed(problem, known, fill, decompress.dense_last if decompress else 0)
    kept, listed = _expected(stages, problem)
    left = (kept or 1.0) ** 0.5 if known.apart else 1.0  # on a GPU a compressed problem has room for all tokens
    overhead = sum(
        known.stages[price_name(pattern)].ms(problem, left if stage.chooses == "blocks" else 1.0)
        for stage in stages
        for pattern in _each([stage])
    )
    return Estimate(dense, overhead, _attend(problem, known, kept, listed), fixed, _share(kept, listed))


def gain(plan: Plan, problem: Problem) -> float | None:
    """Return the ms by which attending to a plan is faster than dense attention, on a CPU; None where nobody knows."""
    found = decided(plan, problem)
    return found.dense - found.sparse if found else None


def decided(plan: Plan, problem: Problem) -> Estimate | None:
    """Return the times of attending to a plan that has been decided, on a CPU; None where nobody knows."""
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
    """The part of all pairs, of what tokens and then lists leave; None: all."""
    return (1.0 if kept is None else kept) * (1.0 if listed is None else listed)


def search_times(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any) -> Estimate | None:
    """Return the times that decide whether to search again where searches were in vain; None where that is not asked.

    Ranks that share a problem's heads must do alike, so they always search.
    """
    if limit != "auto" or not stages or not problem.q.is_cpu or problem.heads_group is not None:
        return None
    known = prices(problem.q.device)
    return estimate(stages, problem, decompress) if known and known.apart else None


def worth_it(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> bool:
    """Whether to run the stages: from `limit` keys on; if that is "auto", by the estimate, where there can be one.

    Where nobody knows what the stages cost here they are measured, once; a problem too short for that is dense.
    """
    if limit != "auto":
        return int(limit) <= 0 or _keys(problem) >= int(limit)
    found = estimate(stages, problem, decompress) if stages else None
    if found is None and stages and may_measure(list(_each(stages)), problem):
        if problem.k.shape[2] < LEAST:
            return False
        measured_once(problem.q.device)
        found = estimate(stages, problem, decompress)
    return found is None or found.worth


def reason(stages: Sequence[Any], limit: str | int, problem: Problem, decompress: Any = None) -> str | None:
    """Return in words why the stages run, where something decides that; `why_whole` says why they do not."""
    if not stages or limit == 0 or not worth_it(stages, limit, problem, decompress):
        return None
    if limit != "auto":
        return f"Break-even is set to {limit} keys: it runs the stages."
    found = estimate(stages, problem, decompress)
    if found is None:
        return None
    return (
        f"Break-even: by the times measured on such a device dense attention takes {found.dense:.2f} ms, sparse about "
        f"{found.sparse:.2f} ms: it runs the stages."
    )


def why_whole(pipeline: Any, problem: Problem) -> str:
    """Return in one line why a pipeline, None for dense, computes every pair of a problem, and what changes that."""
    if pipeline is None or not pipeline.stages:
        return "its pipeline is dense"
    limit, (Q, tokens) = pipeline.attend.break_even, (problem.q.shape[2], problem.k.shape[2])
    if Q <= (last := pipeline.decompress.dense_last):
        return f"all {Q:,} queries are among the last {last:,}, which see everything: set dense_last below {Q:,}"
    always = "attend(break_even=0) in the spec always runs it"
    if not worth_it(pipeline.stages, limit, problem, pipeline.decompress):
        if limit != "auto":
            return f"{tokens:,} tokens are below the break-even of {limit:,}; {always}"
        found = estimate(pipeline.stages, problem, pipeline.decompress)
        few = f"nobody has measured this device yet, which takes {LEAST:,} tokens"
        return f"{tokens:,} tokens are below the break-even on this device, {found.cause() if found else few}; {always}"
    if lost := pipeline.lost(problem):
        return f"the plan of {tokens:,} tokens does not pay, {lost.cause()}; {always}"
    return f"its pipeline keeps everything at {tokens:,} tokens"


def _prices(problem: Problem) -> Prices | None:
    """What is known of a problem's device; ranks that share its heads must decide alike."""
    return prices(problem.q.device) if problem.heads_group is None else prices(problem.q.device, alike=True)


def _pairs(problem: Problem) -> float:
    """How many pairs of a head dense attention computes."""
    Q, K = problem.q.shape[2], problem.k.shape[2]
    pairs = Q * (K - (Q - 1) / 2) if problem.causal else Q * K
    return pairs if problem.sliding_window is None else min(pairs, Q * problem.sliding_window)


def _dense(problem: Problem, known: Prices) -> float:
    (B, H, _, D), wide = problem.q.shape, problem.v.shape[3]
    return 2 * B * H * _pairs(problem) * (D + wide) / known.rate / 1e9


def _fixed(problem: Problem, known: Prices, fill: Any, last: int) -> float:
    """The time of what is computed whatever a stage chooses."""
    Q, K, dense, pairs = problem.q.shape[2], problem.k.shape[2], _dense(problem, known), _pairs(problem)
    near = getattr(fill, "window", 0) + getattr(fill, "sinks", 0)
    if known.fill is None or not near:
        return dense * min((min(last, Q) * K + Q * min(near, K)) / pairs, 1.0)
    filled = known.fill.ms(problem) * Q / K * max(min(near, K) / SPAN, 1.0)
    return filled + dense * min(min(last, Q) * K / pairs, 1.0)


def _attend(problem: Problem, known: Prices, kept: float | None, listed: float | None) -> float:
    """The time of a plan that keeps this part of the pairs by tokens, and of those this part by blocks; None: all."""
    pairs, steps = _dense(problem, known) * (1.0 if kept is None else kept), 0.0
    if kept is not None:
        steps += known.tokens.ms(problem)
    if listed is not None:
        pairs *= listed * known.slow
        steps += known.blocks.ms(problem, (1.0 if kept is None else kept) ** 0.5)
    return pairs + steps


def _expected(stages: Sequence[Any], problem: Problem) -> tuple[float | None, float | None]:
    """The parts of the pairs that token stages, and then block stages, are taken to keep; None: there are none."""
    found: dict[str, list[float]] = {"tokens": [], "blocks": []}
    for stage in stages:
        found[stage.chooses].append(max(_part(pattern, problem) for pattern in _each([stage])))
    kept, listed = (min(parts) if parts else None for parts in found.values())
    return kept, listed


def _part(stage: Any, problem: Problem) -> float:
    """The part of the pairs that a built-in stage is taken to keep."""
    Q, K, pairs = problem.q.shape[2], problem.k.shape[2], _pairs(problem)
    if getattr(stage, "keep", None) is not None:
        return float(stage.keep)
    if hasattr(stage, "min_tokens"):
        least = min((stage.min_tokens + stage.voters) / K, 1.0) ** 2
    else:
        size = getattr(stage, "block_size", 1)
        near = getattr(stage, "window", 0) + getattr(stage, "sinks", 0) + size / 2  # whole blocks reach further
        near = min(max(near, 2 * (getattr(stage, "min_budget", None) or 0)), K)
        early = max(near - (K - Q), 0) if problem.causal else 0  # rows that see fewer
        least = min((Q * near - early**2 / 2) / pairs, 1.0)
    if type(stage).__name__ == "Streaming":
        return least
    usual = USUAL.get(type(stage).__name__)
    return least + (min(max(usual(stage), 0.0), 1.0) if usual else GUESS) * (1 - least)


def _each(stages: Sequence[Any]) -> Iterator[Any]:
    """Yield the stages that choose: the patterns of a Union in its place."""
    for stage in stages:
        yield from _each(stage.patterns) if hasattr(stage, "patterns") else (stage,)


def _keys(problem: Problem) -> int:
    """How many keys the longest sequence has; waits for the device if there is padding."""
    return problem.k.shape[2] if problem.full else int(problem.lengths()[1].max())
