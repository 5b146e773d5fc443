"""What a sparse layer did so far, as the host knows it: noted in every prefill, so to note it waits for no device."""

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
    """What is known of a plan without its lists, which may be as large as the keys."""

    queries: float  # part of the queries, in (0, 1], of the head that has most
    keys: float  # likewise
    counts: Tensor | None  # [B, h, I] of the blocks
    grid: Shape  # query and key blocks
    dense_last: int
    near: int  # keys that a dropped query sees

    @classmethod
    def of(cls, plan: Plan, Q: int, K: int) -> "Kept":
        queries, keys = (t.idx.shape[-1] / n if t else 1.0 for t, n in ((plan.queries, Q), (plan.keys, K)))
        b, fill = plan.blocks, plan.fill if plan.queries else None
        near = fill.window + fill.sinks if isinstance(fill, SlidingWindow) else 0
        grid = (b.counts.shape[2], b.n) if b else (1, 1)
        return cls(queries, keys, b.counts if b else None, grid, min(plan.dense_last, Q), min(near, K))

    def density(self, Q: int, K: int) -> float:
        """Return about which part of the pairs of a causal problem is computed; waits for the device of `counts`."""
        rows, columns = self.grid
        listed, last = 1.0, self.dense_last
        if self.counts is not None:
            first = max(round(rows * (1 - last / Q)), 1)  # blocks of the rows that do not see all anyway
            ends = [max(columns - rows, 0) + i + 1 for i in range(first)]
            listed = min(self.counts[..., :first].float().mean().item() * first / sum(ends), 1.0)
        all_of = lambda n: n * (K - (n - 1) / 2)  # noqa: E731  # pairs of the last n rows
        others = all_of(Q) - all_of(last)
        filled = (1 - self.queries) * (Q - last) * self.near
        return min((all_of(last) + min(self.queries * self.keys * listed * others + filled, others)) / all_of(Q), 1.0)


@dataclass
class Ran:
    """The prefill calls of one layer that has a pipeline."""

    calls: int = 0
    sparse: int = 0  # of them: those that left something out, or may have
    call: tuple[Shape, Shape, torch.dtype, torch.device] | None = None  # queries, keys: the last that a pipeline ran
    kept: Kept | None = None  # of the last call that was sparse and whose plan was there to look at
    at: tuple[int, int] = (1, 1)  # queries and keys then

    def note(self, plans: Sequence[Plan] | None, q: Tensor, k: Tensor) -> None:
        """Count a call by its plans; None if a graph ran it, which shows none. The last of them has these q and k."""
        self.call = q.shape, k.shape, q.dtype, q.device
        if plans is None:
            self.sparse += 1
        elif some := [plan for plan in plans if plan.queries or plan.keys or plan.blocks]:
            self.sparse += 1
            if some[-1] is plans[-1]:
                self.at = q.shape[2], k.shape[2]
                self.kept = Kept.of(some[-1], *self.at)


def counted(ran: Collection[Ran]) -> str:
    """Return how many calls there were, and how many of them sparse."""
    calls, sparse = sum(one.calls for one in ran), sum(one.sparse for one in ran)
    return f"{calls} prefill call{'s' if calls != 1 else ''} of layers, {sparse or 'none'} sparse"


def kept(ran: Collection[Ran]) -> str | None:
    """Return about what the last sparse call of each layer kept, None if there was none; waits for the device.

    It is about that, because lists are counted and not looked at.
    """
    seen = [(one.kept, one.at) for one in ran if one.kept]
    if not seen:
        return None
    queries = mean(one.queries for one, _ in seen)
    density = mean(one.density(*at) for one, at in seen)
    return f"in the last of these, mean over layers: stages kept about {queries:.2f}, density about {density:.2f}"


def why_dense(ran: Ran, pipeline: Pipeline | None) -> str | None:
    """Return in words why a layer was dense whose pipeline was asked; None if it was not, or nothing was asked."""
    if ran.sparse or ran.call is None:
        return None
    q, k, dtype, device = ran.call
    one = torch.empty(1, dtype=dtype, device=device)
    return why_whole(pipeline, Problem.of(one.expand(q), one.expand(k), one.expand(k)))
