"""The truth: dense attention under the mask of the plan's pairs, in float64. Slow, obvious, never optimised."""

import torch
from torch import Tensor

from .plan import Plan
from .problem import Output, Problem, to_heads


def oracle(problem: Problem, plan: Plan | None = None, rows: Tensor | None = None) -> Output:
    """The output of the plan (dense if None), float64 whatever the input's dtype; every kernel is judged by it.

    With `rows` [R], query indices, only of those.
    """
    H, q = problem.q.shape[1], problem.q if rows is None else problem.q[:, :, rows]
    q, k, v = q.double(), to_heads(problem.k, H).double(), to_heads(problem.v, H).double()
    seen = (plan or Plan()).pairs(problem, rows)
    scores = (q @ k.mT * problem.scale).masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)  # -inf - -inf: saw nothing
    return Output(weights @ v, lse)
