"""The oracle: dense attention under the mask of the plan's pairs, in float64. It is slow, simple, never optimised."""

import torch
from torch import Tensor

from .plan import Plan
from .problem import Output, Problem, to_heads


def oracle(problem: Problem, plan: Plan | None = None, rows: Tensor | None = None) -> Output:
    """Compute the output of a plan (dense if None), in float64 for every input dtype; every kernel is compared with it.

    With query indices `rows` [R] the output has only these rows.
    """
    H, q = problem.q.shape[1], problem.q if rows is None else problem.q[:, :, rows]
    q, k, v = q.double(), to_heads(problem.k, H).double(), to_heads(problem.v, H).double()
    seen = (plan or Plan()).pairs(problem, rows)
    scores = (q @ k.mT * problem.scale).masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)  # a query that sees no key has -inf minus -inf
    return Output(weights @ v, lse)
