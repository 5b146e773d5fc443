"""The output at full length, filled by this backend's sliding window."""

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem

from .sliding_window import sliding_window


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    return None


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    out = plan.decompress(short)
    if plan.local:
        out = plan.fill_in(problem, out, sliding_window(problem, plan))
    return out
