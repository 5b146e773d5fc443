"""Count the prefill calls of layers and note what they kept. To note a call never waits for the device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from ...break_even import why_whole
from ...fills import SlidingWindow
from ...pipeline import Pipeline
from ...plan import Plan
from ...problem import Problem

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """A summary of a plan without its lists, which may be as large as the keys."""

    queries: float  # part of the queries, in (0, 1], that the head with the most kept queries keeps
    keys: float  # part of the keys, in (0, 1], that the head with the most kept keys keeps
    counts: Tensor | None  # [B, h, I]: lengths of the block lists
    grid: Shape  # numbers of query blocks and key blocks
    dense_last: int  # last queries that see everything
    near: int  # keys that a dropped query sees through the fill

    @classmethod
    def of(cls, plan: Plan, Q: int, K: int) -> "Kept":
        queries, keys = (t.idx.shape[-1] / n if t else 1.0 for t, n in ((plan.queries, Q), (plan.keys, K)))
        b, fill = plan.blocks, plan.fill if plan.queries else None
        near = fill.window + fill.sinks if isinstance(fill, SlidingWindow) else 0
        grid = (b.counts.shape[2], b.n) if b else (1, 1)
        return cls(queries, keys, b.counts if b else None, grid, min(plan.dense_last, Q), min(near, K))

    def density(self, Q: int, K: int) -> float:
        """Return the approximate density of a causal problem of Q queries and K keys. Waits for `counts`' device."""
        rows, columns = self.grid
        listed, last = 1.0, self.dense_last
        if self.counts is not None:
            first = max(round(rows * (1 - last / Q)), 1)  # query blocks before the last queries
            ends = [max(columns - rows, 0) + i + 1 for i in range(first)]
            listed = min(self.counts[..., :first].float().mean().item() * first / sum(ends), 1.0)
        all_of = lambda n: n * (K - (n - 1) / 2)  # noqa: E731  # pairs of the last n rows
        others = all_of(Q) - all_of(last)
        filled = (1 - self.queries) * (Q - last) * self.near
        return min((all_of(last) + min(self.queries * self.keys * listed * others + filled, others)) / all_of(Q), 1.0)


@dataclass
class Ran:
    """Counts of the prefill calls of one layer that has a pipeline."""

    calls: int = 0
    sparse: int = 0  # calls whose plan was not dense, or is unknown
    call: tuple[Shape, Shape, torch.dtype, torch.device] | None = None  # shapes of q and k in the pipeline's last call
    kept: Kept | None = None  # of the last sparse call whose plan is known
    at: tuple[int, int] = (1, 1)  # numbers of queries and keys in that call

    def note(self, plans: Sequence[Plan] | None, q: Tensor, k: Tensor) -> None:
        """Note a call that the pipeline ran: its plans, and the q and k of the last plan.

        `plans` is None if a CUDA graph ran the call, because a graph does not return its plan.
        """
        self.call = q.shape, k.shape, q.dtype, q.device
        if plans is None:
            self.sparse += 1
        elif some := [plan for plan in plans if plan.queries or plan.keys or plan.blocks]:
            self.sparse += 1
            if some[-1] is plans[-1]:
                self.at = q.shape[2], k.shape[2]
                self.kept = Kept.of(some[-1], *self.at)


def counted(ran: Collection[Ran]) -> str:
    """Return in words how many calls there were and how many of them were sparse."""
    calls, sparse = sum(layer.calls for layer in ran), sum(layer.sparse for layer in ran)
    return f"{calls} prefill call{'s' if calls != 1 else ''} of layers, {sparse or 'none'} sparse"


def kept(ran: Collection[Ran]) -> str | None:
    """Return in words what the last sparse call of each layer kept, or None if no call was sparse.

    The numbers are approximate: they follow from the lengths of the plan's lists. Waits for the device.
    """
    last = [(layer.kept, layer.at) for layer in ran if layer.kept]
    if not last:
        return None
    queries = mean(summary.queries for summary, _ in last)
    density = mean(summary.density(*at) for summary, at in last)
    return f"in the last of these, mean over layers: stages kept about {queries:.2f}, density about {density:.2f}"


def why_dense(ran: Ran, pipeline: Pipeline | None) -> str | None:
    """Return in words why a layer's pipeline ran dense in all calls; None if it did not, or was never called."""
    if ran.sparse or ran.call is None:
        return None
    q, k, dtype, device = ran.call
    empty = torch.empty(1, dtype=dtype, device=device)
    return why_whole(pipeline, Problem.of(empty.expand(q), empty.expand(k), empty.expand(k)))
