"""When two outputs are the same. Errors are relative to the truth, in float64; nothing here is tuned by hand."""

import torch

from sparsekit import Output


def error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """|output - truth| / |truth|, Frobenius; NaN if the output holds NaN."""
    size = truth.double().norm()
    return ((output.double() - truth.double()).norm() / size.clamp(min=torch.finfo(torch.float64).tiny)).item()


def same(a: Output, b: Output) -> None:
    """Equal up to float64 rounding."""
    torch.testing.assert_close(a.o.double(), b.o.double(), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(a.lse.double(), b.lse.double(), atol=1e-10, rtol=1e-10)


def no_worse(output: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> None:
    """A kernel's error against float64 is at most twice that of plain torch in the same precision."""
    allowed = 2 * error(plain, truth) + torch.finfo(dtype).eps  # eps: where plain torch happens to be exact
    assert error(output, truth) <= allowed, f"error {error(output, truth):.3g}, allowed {allowed:.3g}"
