"""The op `scatter_tokens`: the output at full length, with the plan's fill."""

from torch import Tensor

from ..plan import Plan
from ..problem import Output, Problem, shapes
from ..samples import Arguments, Samples
from . import attend
from .sliding_window import sliding_window


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    return None


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    """Copy the rows of the compressed output back to the kept queries; dropped queries get the plan's fill."""
    out = plan.decompress(short)
    if plan.local:
        out = plan.fill_in(problem, out, sliding_window(problem, plan))
    return out


def fake(problem: Problem, plan: Plan, short: Output) -> tuple[Tensor, Tensor]:
    return shapes(problem.q, problem.v)


def samples(draw: Samples) -> Arguments:
    p = draw.problem()
    plans = draw.plans() | {"sliding window": draw.filled()}
    return {name: (p, plan, attend.attend(plan.compress(p), Plan(blocks=plan.blocks))) for name, plan in plans.items()}
