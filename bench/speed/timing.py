"""Timing by CUDA events on a GPU, by the clock on a CPU. Contenders take turns, so that a slow moment hits all."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bench.speed.contender import Contender
from sparsekit import Problem, dispatch, stages

ROWS, ROW = 5, 12  # number of rows, calls in a row
SYNC = "called a synchronizing CUDA operation"  # torch's warning
STEPS = ("score", "select", "pattern", "compress", "attend", "decompress", "fill")
OF_OP = {
    "window_scores": "score",
    "block_means": "score",
    "select_tokens": "select",
    "gather_tokens": "compress",
    "scatter_tokens": "decompress",
    "sliding_window": "fill",
}
Track = Callable[[Iterable[int]], Iterable[int]]  # shows progress
OF_STAGE = {"tokens": "select", "blocks": "pattern"}  # name of a stage's work besides its ops, by what it chooses


class Marks:
    """Moments on a device, in order. On a GPU a moment is the end of the work before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._moments: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def ms(self) -> list[float]:
        """Return the ms between each moment and the next; wait for the device."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) for a, b in pairs]
        return [(b - a) * 1e3 for a, b in pairs]


class StepClock:
    """A clock for `Pipeline.output` and `dispatch.timed`: each moment counts for the innermost step it is in."""

    def __init__(self, device: torch.device) -> None:
        self._marks = Marks(device)
        self._open = ["other"]
        self._spans: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._switch(lambda: self._open.append(step_of(name) or self._open[-1]))
        yield
        self._switch(self._open.pop)

    def _switch(self, change: Callable[[], Any]) -> None:
        self._marks.mark()
        self._spans.append(self._open[-1])
        change()

    def ms(self) -> dict[str, float]:
        """Return the ms of each step; the time before the first step is left out."""
        found: dict[str, float] = {}
        for step, spent in zip(self._spans[1:], self._marks.ms(), strict=True):
            found[step] = found.get(step, 0.0) + spent
        return found


def step_of(name: str) -> str | None:
    """Return the step that a stage, an op or a named part of a call belongs to; None for the step that contains it."""
    if name in OF_OP:
        return OF_OP[name]
    if name in stages.__all__:
        return OF_STAGE[getattr(stages, name).chooses]
    return None if name in dispatch.ops() and name not in STEPS else name


def turns(
    contenders: Sequence[Contender], repeats: int, device: torch.device, track: Track
) -> dict[tuple[str, str], list[float]]:
    """Return ms by contender: `repeats` turns after one that does not count, each beginning with another contender."""
    times: dict[tuple[str, str], list[float]] = {c.key: [] for c in contenders}
    for turn in track(range(repeats + 1)):
        first = turn % max(len(contenders), 1)
        for contender in (*contenders[first:], *contenders[:first]):
            spent = once(contender, device)
            if turn:
                times[contender.key].append(spent)
    return times


def once(contender: Contender, device: torch.device) -> float:
    """Return the ms of one call that begins on an idle device, until all that it launched is done."""
    wait(device)
    marks = Marks(device)
    marks.mark()
    contender.run(nullcontext)
    marks.mark()
    return marks.ms()[0]


def in_a_row(contender: Contender, device: torch.device) -> dict[str, float] | None:
    """Return percentiles of the ms per call in rows of calls that do not wait for each other; None on a CPU.

    A model's layers call so: the host may run ahead, and only the slower of host and GPU counts.
    """
    if device.type == "cpu":
        return None
    found = []
    for _ in range(ROWS):
        wait(device)
        marks = Marks(device)
        marks.mark()
        for _ in range(ROW):
            contender.run(nullcontext)
        marks.mark()
        found.append(marks.ms()[0] / ROW)
    return percentiles(found)


def steps(contender: Contender, repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median ms of each step, over calls of their own, because timing steps takes time."""
    found = []
    for _ in range(repeats):
        wait(device)
        clock = StepClock(device)
        with dispatch.timed(clock):
            contender.run(clock)
        found.append(clock.ms())
    return {step: round(statistics.median(one[step] for one in found), 4) for step in found[0]}


def look(contender: Contender, p: Problem) -> tuple[int, int] | tuple[None, None]:
    """Return how often a call waits for the GPU, as far as torch sees it, and its peak of bytes; None on a CPU.

    The peak is q, k, v, and the most that the call holds besides, its output included.
    """
    if not p.q.is_cuda:
        return None, None
    wait(p.q.device)
    torch.cuda.reset_peak_memory_stats(p.q.device)
    before = torch.cuda.memory_allocated(p.q.device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            contender.run(nullcontext)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    peak = torch.cuda.max_memory_allocated(p.q.device) - before + sum(x.nbytes for x in (p.q, p.k, p.v))
    return sum(SYNC in str(warning.message) for warning in caught), peak


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def percentiles(ms: list[float]) -> dict[str, float]:
    """Return the 20th, 50th and 80th percentile, interpolated."""
    fifths = statistics.quantiles(ms, n=5, method="inclusive")
    return {"p20": round(fifths[0], 4), "p50": round(statistics.median(ms), 4), "p80": round(fifths[3], 4)}
