"""What a query gets that the plan dropped. A fill speaks of the original problem, never of the compressed one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .checks import check_amount
from .problem import PAD, Problem, to_heads

SINKS = 16  # first tokens that are always seen: models rest on them the attention that goes nowhere else


@dataclass(frozen=True)
class Zeros:
    """Dropped queries get a zero output (and lse -inf): the papers' choice."""

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        return torch.zeros_like(problem.visible(rows))

    def counts(self, problem: Problem) -> Int[Tensor, "B _h Q"]:
        return torch.zeros_like(problem.q_pos)


@dataclass(frozen=True)
class SlidingWindow:
    """Dropped queries attend to their own neighbourhood, and to the first tokens of the sequence.

    The first tokens are sinks: pretrained models give them the attention that a query needs nowhere else. A query that
    does not see them gets an output that its model never had in training.

    Args:
        window: nearest keys a dropped query sees, itself among them, in tokens, >= 1; both sides if not causal
        sinks: first keys of the sequence it sees too, in tokens, >= 0
    """

    window: int = 128
    sinks: int = SINKS

    def __post_init__(self) -> None:
        check_amount(self, "window", 1)
        check_amount(self, "sinks", 0)

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        H = problem.q.shape[1]
        q_pos = problem.q_pos if rows is None else problem.q_pos[..., rows]
        q, k = to_heads(q_pos, H)[..., :, None], to_heads(problem.k_pos, H)[..., None, :]
        near = (q - k).abs() < self.window
        return problem.visible(rows) & (near | (k < self.sinks))

    def spans(self, problem: Problem) -> tuple[Int[Tensor, "B _h Q"], Int[Tensor, "B _h Q"], Int[Tensor, "B _h Q"]]:
        """The key slots each query would see: [low, high), and of the others [0, sinks), if its own window has them."""
        heads = max(problem.q_pos.shape[1], problem.k_pos.shape[1])
        q, k = to_heads(problem.q_pos, heads), to_heads(problem.k_pos, heads).contiguous()
        reach = high = to_heads(problem.reach(), heads)
        if not problem.causal:
            after = q.clamp(max=PAD - self.window) + self.window
            high = high.minimum(torch.searchsorted(k, after.contiguous()))
        low = torch.searchsorted(k, (q - self.window + 1).contiguous()).maximum(problem.start()).minimum(high)
        return low, high, reach.minimum((k < self.sinks).sum(-1, keepdim=True))

    def counts(self, problem: Problem) -> Int[Tensor, "B _h Q"]:
        """How many keys each query would see: the row sums of `pairs`, without writing them down."""
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
