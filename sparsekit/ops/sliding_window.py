"""The op `sliding_window`: the fill of the dropped queries by a window."""

from torch import Tensor

from ..fills import SlidingWindow
from ..plan import Plan
from ..problem import Output, Problem, shapes, to_heads
from ..samples import Arguments, Samples
from .attend import over


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    """Compute attention of the dropped queries over the window and sinks of the fill; other rows are 0, lse -inf."""
    p, H = problem, problem.q.shape[1]
    assert plan.fill is not None
    seen = plan.fill.pairs(p) & to_heads(plan.dropped(p), H)[..., None]
    return over(p, seen)


def fake(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    return shapes(problem.q, problem.v)


def samples(draw: Samples) -> Arguments:
    return {"": (draw.problem(), draw.filled()), "a window of the problem's own": (draw.problem(7), draw.filled())}
