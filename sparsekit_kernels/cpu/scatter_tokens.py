"""The output at full length, filled by this backend's sliding window."""

from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from .sliding_window import sliding_window


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    return None


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    if not plan.local or plan.queries is None:
        return plan.decompress(short)
    out, idx = sliding_window(problem, plan), to_heads(plan.queries.idx, problem.q.shape[1])
    kept = (idx < plan.queries.n).nonzero(as_tuple=True)  # batch, head, slot
    rows = (*kept[:2], idx[kept])
    out.o[rows], out.lse[rows] = short.o[kept], short.lse[kept]  # only these rows are copied, not the others
    return out
