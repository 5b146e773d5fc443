"""Fills: the output of queries that the plan drops. A fill is about the original problem, not the compressed one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .checks import check_amount
from .problem import PAD, Problem, to_heads

SINKS = 16  # number of first tokens that are always seen: models give them the attention needed nowhere else


@dataclass(frozen=True)
class Zeros:
    """A fill of zeros (and lse -inf) for dropped queries, as in the papers."""

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        """Return the mask of the keys each query would see if dropped; for queries `rows` [R] if given: no key."""
        return torch.zeros_like(problem.visible(rows))

    def counts(self, problem: Problem) -> Int[Tensor, "B _h Q"]:
        """Count the keys each query would see if dropped: 0."""
        return torch.zeros_like(problem.q_pos)


@dataclass(frozen=True)
class SlidingWindow:
    """A fill by attention: dropped queries attend to the keys near them, and to the first tokens of the sequence.

    The first tokens are sinks: pretrained models give them the attention that a query needs nowhere else. A query that
    does not see them gets an output that its model never had in training.

    Args:
        window: nearest keys that a dropped query sees, its own among them, in tokens, >= 1; both sides if not causal
        sinks: number of first tokens that a dropped query sees too, >= 0
    """

    window: int = 128
    sinks: int = SINKS

    def __post_init__(self) -> None:
        check_amount(self, "window", 1)
        check_amount(self, "sinks", 0)

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        """Return the mask of the keys each query would see if dropped; of queries `rows` [R] if given."""
        H = problem.q.shape[1]
        q_pos = problem.q_pos if rows is None else problem.q_pos[..., rows]
        q, k = to_heads(q_pos, H)[..., :, None], to_heads(problem.k_pos, H)[..., None, :]
        near = (q - k).abs() < self.window
        return problem.visible(rows) & (near | (k < self.sinks))

    def spans(self, problem: Problem) -> tuple[Int[Tensor, "B _h Q"], Int[Tensor, "B _h Q"], Int[Tensor, "B _h Q"]]:
        """Return low, high, sinks: a query would see the key slots [low, high), and the visible ones of [0, sinks)."""
        heads = max(problem.q_pos.shape[1], problem.k_pos.shape[1])
        q, k = to_heads(problem.q_pos, heads), to_heads(problem.k_pos, heads).contiguous()
        reach = high = to_heads(problem.reach(), heads)
        if not problem.causal:
            after = q.clamp(max=PAD - self.window) + self.window
            high = high.minimum(torch.searchsorted(k, after.contiguous()))
        low = torch.searchsorted(k, (q - self.window + 1).contiguous()).maximum(problem.start()).minimum(high)
        return low, high, reach.minimum((k < self.sinks).sum(-1, keepdim=True))

    def counts(self, problem: Problem) -> Int[Tensor, "B _h Q"]:
        """Count the keys each query would see if dropped: the row sums of `pairs`, without the mask."""
        heads = max(problem.q_pos.shape[1], problem.k_pos.shape[1])
        q, k = to_heads(problem.q_pos, heads), to_heads(problem.k_pos, heads).contiguous()
        first = q - min(self.window, problem.sliding_window or self.window) + 1
        last = q if problem.causal else q.clamp(max=PAD - self.window) + self.window - 1
        upto = lambda pos: torch.searchsorted(k, pos.contiguous(), right=True)  # noqa: E731
        before = upto(first - 1)
        near = upto(last) - before
        farthest = q if problem.causal else torch.full_like(q, PAD - 1)
        sinks = upto(farthest.clamp(max=self.sinks - 1))
        if problem.sliding_window is not None:
            sinks = (sinks - upto(q - problem.sliding_window)).clamp(min=0)
        both = (upto(last.clamp(max=self.sinks - 1)) - before).clamp(min=0)
        return (near + sinks - both).masked_fill(q == PAD, 0)


Fill = Zeros | SlidingWindow
