"""Checks that two outputs are the same, up to float64 rounding. The tolerance is not tuned by hand."""

import torch

from ..problem import Output


def same(a: Output, b: Output, why: str | None = None) -> None:
    """Check that two outputs are equal up to float64 rounding.

    Raises AssertionError, whose first line is `why`, above torch's description of the difference.
    """
    msg = None if why is None else lambda text: f"{why}\n{text}"
    torch.testing.assert_close(a.o.double(), b.o.double(), atol=1e-10, rtol=1e-10, msg=msg)
    torch.testing.assert_close(a.lse.double(), b.lse.double(), atol=1e-10, rtol=1e-10, msg=msg)
