"""Decompress by FlashAttention-4: all queries attend to their sliding window, then to the sinks.

Few queries are kept, so little work is wasted, and FlashAttention-4 takes half the time of a Triton kernel for a
window. The sinks before the window are merged by log-sum-exp. Last, the kept queries get their rows.
"""

from sparsekit import dispatch
from sparsekit.plan import Plan
from sparsekit.problem import PAD, Output, Problem, to_heads

from ..triton.scatter_tokens import add_sinks, put_rows
from . import attend, fourth_missing


def why_not(problem: Problem, plan: Plan, short: Output) -> str | None:
    p, fill = problem, plan.local
    if fill is None:
        return "no dropped query is filled by a sliding window: there is nothing to attend to"
    if not p.causal:
        return "its sliding window is for causal attention only: take triton"
    if reason := attend.why_not(p, Plan()):
        return reason
    if missing := fourth_missing(dispatch.capability(p.q.device)[0]):
        return f"sliding windows need FlashAttention-4, and {missing}; take triton"
    if max(p.q.shape[3], p.v.shape[3]) > 128:
        return f"sliding windows of head dim {max(p.q.shape[3], p.v.shape[3])} are not tested here: take triton"
    return None if p.gapless or _gapless(p) else "its sliding window counts keys, and positions have gaps: take triton"


def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> Output:
    assert plan.local and plan.queries
    window = min(plan.local.window, problem.k.shape[2])
    out = attend.fourth(problem, None, dispatch.capability(problem.q.device)[0], window)
    if plan.local.sinks:
        add_sinks(problem, plan.local, out)
    put_rows(plan.queries, short, out)
    return out


def _gapless(p: Problem) -> bool:
    """Return whether positions of both sides count up by one, to the same end; wait for the device to read them."""
    heads = max(p.q_pos.shape[1], p.k_pos.shape[1])
    q_end, k_end = (to_heads(pos.masked_fill(pos == PAD, -1).amax(-1), heads) for pos in (p.q_pos, p.k_pos))
    return bool(((p.k_pos.diff(dim=-1) == 1) | (p.k_pos[..., 1:] == PAD)).all() & (q_end == k_end).all())
