"""The judge: contenders whose first call returns the right answer are timed. Others become records with a reason."""

import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.records import Record
from bench.speed import timing
from bench.speed.contender import Contender, Skipped, Truth, active, work
from bench.speed.dense import PAPERS
from sparsekit import NoBackendError, Plan, Problem

Say = Callable[[str], Any]


class Wrong(Exception):
    """Raised for an output that is not what its plan means."""


@dataclass(frozen=True)
class Judged:
    """A contender that may be timed."""

    contender: Contender
    error: float | None  # None: it has no output of its own
    plain: float | None  # plain torch's error on the same plan


class Judge:
    """Collects the contenders of one problem: `judged`, and `lost` as records without a time."""

    def __init__(self, p: Problem, say: Say) -> None:
        self.p, self.say = p, say
        self.judged: list[Judged] = []
        self.lost: list[Record] = []
        self._truths: dict[int, tuple[Plan, Truth]] = {}  # by identity, because backends share a plan

    def consider(self, case: str, backend: str, kind: str, make: Callable[[], Iterable[Contender]]) -> None:
        """Make the contenders and check each. An error is printed and recorded, and does not stop the others."""
        for one in self._attempt(case, backend, kind, lambda: list(make())) or ():
            found = self._attempt(one.case, one.backend, one.kind, partial(self._check, one))
            if found:
                self.judged.append(found)

    def _check(self, one: Contender) -> Judged:
        output = one.run(nullcontext)
        if one.plan is None:
            self.say(f"  {one.case}, {one.backend}: runs")
            return Judged(one, None, None)
        if id(one.plan) not in self._truths:
            self._truths[id(one.plan)] = one.plan, Truth.of(self.p, one.plan)
        truth = self._truths[id(one.plan)][1]
        error = truth.error(output)
        if one.kind != "peer" and not error <= 2 * truth.plain:
            raise Wrong(f"error {error:.2e}, plain torch {truth.plain:.2e}: wrong, so not timed")
        self.say(f"  {one.case}, {one.backend}: error {error:.1e}, plain torch {truth.plain:.1e}")
        return Judged(one, error, truth.plain)

    def _attempt(self, case: str, backend: str, kind: str, do: Callable[[], Any]) -> Any:
        how, reason = "skipped", ""
        try:
            return do()
        except (Skipped, NoBackendError, torch.OutOfMemoryError) as error:
            reason = str(error).split("\n")[0]
        except Wrong as error:
            how, reason = "refused", str(error)
        except Exception as error:  # one that breaks must not cost the others their time on a borrowed GPU
            traceback.print_exc()
            how, reason = "refused" if kind == "ours" else "skipped", f"{type(error).__name__}: {error}".split("\n")[0]
        self.say(f"  {case}, {backend}: {how}: {reason}")
        self.lost.append({"case": case, "backend": backend, "kind": kind, how: reason})
        return None


def has_steps(one: Contender) -> bool:
    """Return whether a contender does more than attend."""
    return one.plan is None or one.what not in ("attend", "dense") or one.plan.queries is not None


def measure(p: Problem, judged: list[Judged], repeats: int, track: timing.Track) -> list[Record]:
    """Return records of times in turns, with the fastest dense attention of these turns, and of steps and memory."""
    device = p.q.device
    times = timing.turns([one.contender for one in judged], repeats, device, track)
    ms = {key: timing.percentiles(spent) for key, spent in times.items()}
    dense = {one.contender.backend: ms[one.contender.key] for one in judged if one.contender.kind == "dense"}
    fastest = min(dense, key=lambda name: dense[name]["p50"], default=None)
    pairs = work(p, Plan())
    records = []
    for one in judged:
        it, plan = one.contender, one.contender.plan
        mine = ms[it.key]
        syncs, peak = timing.look(it, p)
        records.append(
            {
                "case": it.case,
                "backend": it.backend,
                "kind": it.kind,
                "what": it.what,
                "kept": None if plan is None else round(plan.kept(p), 5),
                "density": None if plan is None else round(work(p, plan) / pairs, 5),
                "active": None if plan is None else round(active(p, plan) / pairs, 5),
                "ms": mine,
                "error": one.error,
                "plain_torch_error": one.plain,
                "dense": fastest,
                "dense_ms": dense[fastest] if fastest else None,
                "flash2_ms": dense.get(PAPERS),
                "speed_up": round(dense[fastest]["p50"] / mine["p50"], 3) if fastest else None,
                "row_ms": timing.in_a_row(it, device),
                "steps": timing.steps(it, min(repeats, 5), device) if has_steps(it) else {"attend": mine["p50"]},
                "syncs": syncs,
                "peak_bytes": peak,
            }
        )
    return records
