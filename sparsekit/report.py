"""The report of a pipeline on a problem: kept, density, attention mass kept, error and time after each stage.

Accuracy is measured on query rows spread over the sequence, against dense attention in float64. Times are those of one
run after a warm-up: they compare steps; bench/ measures speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.table import Table
from torch import Tensor

from . import dispatch
from .break_even import reason, why_whole
from .execute import attend
from .oracle import oracle
from .plan import Plan
from .policies import Steps
from .problem import Problem, to_heads
from .sinks import SINKS, Sinks, measure, share
from .timing import now_ms

ROWS = 64  # query rows on which accuracy is measured


@dataclass(frozen=True)
class Step:
    """One line of a report. The figures of a stage are those of the plan up to it."""

    name: str
    ms: float
    kept: float | None = None  # part of the queries that is kept, in [0, 1]
    density: float | None = None  # part of the dense pairs that is computed, in [0, 1]
    mass: float | None = None  # attention probability on the computed pairs, mean over sampled rows, in [0, 1]
    error: float | None = None  # |output - dense| / |dense| over sampled rows


@dataclass(frozen=True)
class Report:
    """The figures of each step; `print(report)` shows them as a table, with `dense` and the warning below it."""

    steps: tuple[Step, ...]
    dense_ms: float  # time of dense attention of the same call
    notes: tuple[str, ...]  # notes about the figures: NaN in the input, sampling, host synchronisations
    sinks: Sinks | None = None  # attention on the first keys; None if no query sees other keys
    dense: str | None = None  # one line on why attention ran dense and what to do; None if it was sparse

    @property
    def ms(self) -> float:
        """The time of the whole call."""
        return sum(step.ms for step in self.steps)

    def warning(self) -> str | None:
        """Return in one line that the plan drops sinks that matter, or None."""
        return self.sinks.warning() if self.sinks else None

    def table(self) -> RenderableType:
        """Return the steps as a table for rich."""
        table = Table("step", caption="\n".join(self.notes), caption_justify="left")
        for name in ("kept", "density", "mass kept", "output error", "ms"):
            table.add_column(name, justify="right")
        share = lambda x: "" if x is None else f"{x:.3f}"  # noqa: E731
        for s in self.steps:
            error = "" if s.error is None else f"{s.error:.2e}"
            table.add_row(s.name, share(s.kept), share(s.density), share(s.mass), error, f"{s.ms:.2f}")
        table.add_section()
        table.add_row("all", *[""] * 4, f"{self.ms:.2f}")
        table.add_row("dense", "1.000", "1.000", "1.000", "0", f"{self.dense_ms:.2f}")
        return table

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(self.table())
            if self.dense:
                console.print(f"Attention ran dense: {self.dense}", markup=False, highlight=False, soft_wrap=True)
            if line := self.warning():
                console.print(f"WARNING: {line}", markup=False, highlight=False, soft_wrap=True)
        return capture.get()


def explain(pipeline: Steps, problem: Problem) -> Report:
    """Run the pipeline and measure each of its steps; see `Pipeline.explain`."""
    policy: dict[str, Any] = dict(compress=pipeline.compress.mode, backend=pipeline.attend.backend)
    attend(problem, pipeline(problem), **policy)  # warm-up
    ms: dict[str, float] = {}

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        started = now_ms(problem.q.device)
        yield
        ms[name] = ms.get(name, 0.0) + now_ms(problem.q.device) - started

    rows = sampled_rows(problem)
    dense = dense_rows(problem, rows)
    steps, plan = [], Plan()
    for i, stage in enumerate(pipeline.stages if pipeline.decides(problem) else ()):
        name = f"{i + 1}. {type(stage).__name__}"
        with clock(name):
            plan = plan.then(stage(dispatch.run("gather_tokens", problem.q.device.type, problem, plan)))
        steps.append(Step(name, ms[name], *accuracy(problem, plan, rows, dense)))
    plan = pipeline(problem)
    before = set(ms)
    attend(problem, plan, clock=clock, **policy)
    steps += [Step(name, time_) for name, time_ in ms.items() if name not in before]
    whole = accuracy(problem, plan, rows, dense)
    steps[-1] = Step(steps[-1].name, steps[-1].ms, *whole)
    attend(problem, backend=policy["backend"])
    with clock("dense"):
        attend(problem, backend=policy["backend"])
    why = why_whole(pipeline, problem) if pipeline.stages and plan == Plan() else None
    because = None if why else reason(pipeline.stages, pipeline.attend.break_even, problem, pipeline.decompress)
    sinks = measure(problem, rows, plan)
    notes = *_notes(problem, plan, len(rows), sinks), *([because] if because else [])
    return Report(tuple(steps), ms["dense"], notes, sinks, why)


def sampled_rows(problem: Problem) -> Tensor:
    """Return ROWS query indices [R], spread over the sequence from its first to its last query."""
    Q = problem.q.shape[2]
    return torch.linspace(0, Q - 1, min(ROWS, Q), device=problem.q.device).round().long().unique()


def last_rows(problem: Problem) -> Tensor:
    """Return the last ROWS query indices [R], from whose rows an answer comes."""
    Q = problem.q.shape[2]
    return torch.arange(max(Q - ROWS, 0), Q, device=problem.q.device)


def dense_rows(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute dense attention of query rows: probabilities [B, H, R, K] and outputs [B, H, R, Dv], float64."""
    p, out = problem, oracle(problem, rows=rows)
    scores = p.q[:, :, rows].double() @ to_heads(p.k, p.q.shape[1]).double().mT * p.scale - out.lse[..., None]
    return torch.where(p.visible(rows), scores.exp(), 0.0), out.o


def accuracy(
    problem: Problem, plan: Plan, rows: Tensor, dense: tuple[Tensor, Tensor]
) -> tuple[float, float, float, float]:
    """Compute kept, density, mass and error of a plan, as in a `Step`; `dense` is the result of `dense_rows`."""
    probability, truth = dense
    kept = probability * plan.pairs(problem, rows)
    weights = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    output = weights @ to_heads(problem.v, problem.q.shape[1]).double()
    error = (output - truth).norm() / truth.norm().clamp(min=torch.finfo(torch.float64).tiny)
    real = probability.sum(-1) > 0
    mass = kept.sum(-1)[real].mean() if real.any() else kept.sum()
    return plan.kept(problem), plan.density(problem), mass.item(), error.item()


def _notes(problem: Problem, plan: Plan, rows: int, sinks: Sinks | None) -> Iterator[str]:
    """Yield the notes below the table, a line each."""
    if sinks:
        yield (
            f"attention mass on the first {SINKS} keys (sinks): {share(sinks.mean)}; most in head {sinks.head}: "
            f"{share(sinks.largest)}"
        )
    for name in ("q", "k", "v"):
        bad = (~getattr(problem, name).isfinite()).sum().item()
        if bad:
            yield f"{name} holds {bad} NaN or infinite values: outputs that depend on them, and errors here, are NaN"
    if problem.sliding_window is not None:
        yield (
            f"a sliding window of {problem.sliding_window} tokens: density counts the pairs inside it, and "
            "TokenCoverage keeps every token"
        )
    yield f"mass and error: {rows} query rows spread over the sequence, float64"
    if plan.queries or plan.keys or plan.blocks:
        yield "on a GPU, with a long prompt, the host waits once for each stage, to learn the size of its choice"
