"""The sliding-window fill alone: the kernel of scatter_tokens, without rows to copy."""

from sparsekit.fills import SlidingWindow
from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem

from . import scatter_tokens


def why_not(problem: Problem, plan: Plan) -> str | None:
    if not isinstance(plan.fill, SlidingWindow):
        return "the plan's fill is not a sliding window"
    return scatter_tokens.why_not_rows(problem, plan)


def sliding_window(problem: Problem, plan: Plan) -> Output:
    return scatter_tokens.rows(problem, plan, None)
