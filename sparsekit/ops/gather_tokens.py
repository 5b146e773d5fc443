"""The shorter problem of the tokens a plan keeps: queries, keys and values next to each other."""

from ..plan import Plan
from ..problem import Problem


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None


def gather_tokens(problem: Problem, plan: Plan) -> Problem:
    return plan.compress(problem)
