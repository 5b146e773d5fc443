"""The output at full length: kept queries get their rows of the compressed output, dropped ones the plan's fill."""

from ..plan import Plan
from ..problem import Output, Problem
from .sliding_window import sliding_window


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    return None


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    out = plan.decompress(short)
    if plan.window:
        out = plan.fill_in(problem, out, sliding_window(problem, plan))
    return out
