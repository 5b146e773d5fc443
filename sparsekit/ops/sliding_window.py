"""Local attention for the queries that see the plan's fill; the rows of the others are zero, lse -inf."""

import torch

from ..fills import SlidingWindow
from ..plan import Plan
from ..problem import Output, Problem, to_heads


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    p, H = problem, problem.q.shape[1]
    assert plan.fill is not None
    seen = plan.fill.pairs(p) & to_heads(plan.filled(p), H)[..., None]
    wide = torch.promote_types(p.q.dtype, torch.float32)
    scores = (p.q @ to_heads(p.k, H).mT).to(wide).mul(p.scale).masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)
    return Output(weights.to(p.q.dtype) @ to_heads(p.v, H), lse)
