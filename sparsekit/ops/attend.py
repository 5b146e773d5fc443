"""The op `attend`: attention over exactly the pairs of a plan, at full length, without the fill."""

from itertools import product

import torch
from jaxtyping import Bool
from torch import Tensor

from ..plan import Plan
from ..problem import Output, Problem, shapes, to_heads
from ..samples import Arguments, Samples


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None


def attend(problem: Problem, plan: Plan) -> Output:
    """Compute attention over exactly the pairs of a plan; dropped queries get 0, lse -inf."""
    p, H = plan.compress(problem), problem.q.shape[1]
    seen = p.visible()
    if plan.blocks:
        m, n = plan.blocks.size
        tiles = to_heads(plan.blocks.mask(), H).repeat_interleave(m, 2).repeat_interleave(n, 3)
        seen = seen & tiles[:, :, : seen.shape[2], : seen.shape[3]]
    return plan.decompress(over(p, seen))


def over(p: Problem, seen: Bool[Tensor, "B H Q K"]) -> Output:
    """Compute attention over the pairs of a mask, in float32 or wider; only the output is rounded, once."""
    H, wide = p.q.shape[1], torch.promote_types(p.q.dtype, torch.float32)
    q, k, v = p.q.to(wide), to_heads(p.k, H).to(wide), to_heads(p.v, H).to(wide)
    scores = (q @ k.mT).mul(p.scale).masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(seen, (scores - lse[..., None]).exp(), 0.0)
    return Output((weights @ v).to(p.q.dtype), lse)


def fake(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    return shapes(problem.q, problem.v)


def samples(draw: Samples) -> Arguments:
    problems = {"": draw.problem(), "window, padding": draw.problem(7, padded=True)}
    pairs = product(draw.plans().items(), problems.items())
    return {", ".join(filter(None, (kind, what))): (problem, plan) for (kind, plan), (what, problem) in pairs}
