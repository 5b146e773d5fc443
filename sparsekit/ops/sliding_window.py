"""Local attention for the dropped queries; the rows of the others are zero, lse -inf."""

from ..fills import SlidingWindow
from ..plan import Plan
from ..problem import Output, Problem, to_heads
from .attend import over


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    p, H = problem, problem.q.shape[1]
    assert plan.fill is not None
    seen = plan.fill.pairs(p) & to_heads(plan.dropped(p), H)[..., None]
    return over(p, seen)
