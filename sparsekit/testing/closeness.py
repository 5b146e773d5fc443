"""When two outputs are the same. Nothing here is tuned by hand."""

import torch

from ..problem import Output


def same(a: Output, b: Output, why: str | None = None) -> None:
    """Equal up to float64 rounding; `why` is what an AssertionError says first, above torch's account of it."""
    msg = None if why is None else lambda text: f"{why}\n{text}"
    torch.testing.assert_close(a.o.double(), b.o.double(), atol=1e-10, rtol=1e-10, msg=msg)
    torch.testing.assert_close(a.lse.double(), b.lse.double(), atol=1e-10, rtol=1e-10, msg=msg)
