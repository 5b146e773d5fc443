"""Comparison of outputs. Errors are relative to the truth, in float64. No tolerance is tuned by hand."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsekit import Output, Plan, Problem
from sparsekit.problem import to_heads
from sparsekit.testing.closeness import same as same


def error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """Return |output - truth| / |truth| in the Frobenius norm; NaN if the output holds NaN."""
    size = truth.double().norm()
    return ((output.double() - truth.double()).norm() / size.clamp(min=torch.finfo(torch.float64).tiny)).item()


def plain_torch(problem: Problem, plan: Plan | None = None, rows: torch.Tensor | None = None) -> Output:
    """Compute the output by torch alone, in the problem's dtype, without any backend of sparsekit.

    With query indices `rows` [R] the output has only these rows. Rows that see no key are zero, lse -inf.
    """
    p, H = problem, problem.q.shape[1]
    seen = (plan or Plan()).pairs(p, rows)
    q = p.q if rows is None else p.q[:, :, rows]
    k, v = to_heads(p.k, H), to_heads(p.v, H)
    o = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=p.scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.mT).to(wide).mul(p.scale).masked_fill(~seen, float("-inf"))
    return Output(o.masked_fill(~seen.any(-1, keepdim=True), 0.0), scores.logsumexp(-1))


def no_worse(output: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> None:
    """Check that a kernel's error against float64 is at most twice that of plain torch in the same precision."""
    no_worse_on_average([(output, plain, truth, dtype)])


def no_worse_on_average(outputs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype]]) -> None:
    """Check the mean error of several small outputs: in one of a few numbers plain torch may be exact by chance.

    Each output comes with plain torch's, the truth and the dtype, whose precision is the unit of its errors.
    """
    once = 0.5  # a single rounding is always allowed, because plain torch may by chance be exact
    units = [torch.finfo(dtype).eps for *_, dtype in outputs]
    mine, theirs = (
        sum(error(given[at], given[2]) / unit for given, unit in zip(outputs, units, strict=True)) / len(outputs)
        for at in (0, 1)
    )
    allowed = 2 * theirs + once
    assert mine <= allowed, f"error {mine:.3g}, allowed {allowed:.3g}, in units of the precision"
