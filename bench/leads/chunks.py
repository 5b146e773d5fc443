"""Chunked prefill: the pipeline decides for each chunk of queries anew, so every part of a prompt has its own probe."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekit import Output, Pipeline, Plan, Problem
from sparsekit.pipeline import Clock


@dataclass(frozen=True)
class ChunkPlan(Plan):
    """A plan for each chunk of queries, over the keys up to its end: what no one Plan can say."""

    parts: tuple[tuple[int, int, Plan], ...] = ()  # first query, end, and the plan of that chunk's problem

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Tensor:
        Q, K = problem.q.shape[2], problem.k.shape[2]
        rows = torch.arange(Q, device=problem.q.device) if rows is None else rows
        pairs = torch.zeros_like(problem.visible(rows))
        for start, end, plan in self.parts:
            mine = (rows >= start) & (rows < end)
            part = plan.pairs(chunk(problem, start, end), rows[mine] - start)
            pairs[:, :, mine] = torch.nn.functional.pad(part, (0, K - part.shape[-1]))
        return pairs

    def work(self, problem: Problem) -> Tensor:
        return torch.stack([plan.work(chunk(problem, *ends)) for *ends, plan in self.parts]).sum(0)

    def dropped(self, problem: Problem) -> Tensor:
        H = problem.q.shape[1]
        found = [plan.dropped(chunk(problem, *ends)).expand(-1, H, -1) for *ends, plan in self.parts]
        return torch.cat(found, -1)

    def check(self, problem: Problem, contents: bool = False) -> None:
        for *ends, plan in self.parts:
            plan.check(chunk(problem, *ends), contents)


def chunk(problem: Problem, start: int, end: int) -> Problem:
    """The queries from `start` to before `end`, over the keys up to them; of a whole prompt without padding."""
    return Problem.of(problem.q[:, :, start:end], problem.k[:, :, :end], problem.v[:, :, :end], scale=problem.scale)


class Chunked(Pipeline):
    """A pipeline run on chunks of `size` queries, the last one the shorter if need be.

    With `last`, two chunks: the last `size` queries by that pipeline, and those before them by the first.
    """

    def __init__(self, inner: Pipeline, size: int, last: Pipeline | None = None) -> None:
        super().__init__([inner], break_even=0)
        self.inner, self.size, self.last = inner, size, last

    def decide(self, problem: Problem, clock: Clock = nullcontext) -> Plan:
        return ChunkPlan(parts=tuple((a, b, one.decide(chunk(problem, a, b))) for a, b, one in self._parts(problem)))

    def run(self, problem: Problem, plan: Plan | None = None, clock: Clock = nullcontext) -> tuple[Plan, Output]:
        given = [made for _, _, made in plan.parts] if isinstance(plan, ChunkPlan) else []
        parts, outs = [], []
        for i, (a, b, pipeline) in enumerate(self._parts(problem)):
            made, out = pipeline.run(chunk(problem, a, b), given[i] if given else None)
            parts.append((a, b, made))
            outs.append(out)
        whole = Output(torch.cat([out.o for out in outs], 2), torch.cat([out.lse for out in outs], 2))
        return ChunkPlan(parts=tuple(parts)), whole

    def _parts(self, problem: Problem) -> list[tuple[int, int, Pipeline]]:
        L = problem.q.shape[2]
        if self.last is None:
            return [(a, min(a + self.size, L), self.inner) for a in range(0, L, self.size)]
        if self.size >= L:
            return [(0, L, self.last)]
        return [(0, L - self.size, self.inner), (L - self.size, L, self.last)]
