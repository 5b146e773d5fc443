"""Our own kernels, in Triton: without nvcc, on any GPU that Triton supports. Tests run them on a CPU, interpreted."""

import os
from functools import cache

import torch
from torch import Tensor

from sparsekit.dispatch import no_gpu


def missing(device: torch.device) -> str | None:
    """Return why Triton cannot run on this device, or None; it needs a GPU, unless it is interpreted."""
    if not _interpreted() and (reason := no_gpu(device)):
        return reason
    try:
        import triton  # noqa: F401  # an optional extra
    except ImportError:
        return "triton is not installed: pip install sparsekit[triton]"
    return None


def why_not_here(*tensors: Tensor) -> str | None:
    """Return why Triton, on a device that it supports, cannot run on these tensors, or None."""
    interpreted = _interpreted()
    for x in tensors:
        if x.dtype.itemsize == 8 and not interpreted:
            return f"{x.dtype} is not supported: cast to float32"
        if str(x.dtype) == "torch.bfloat16" and interpreted:
            return "Triton's interpreter computes bfloat16 wrongly: cast to float16 or float32"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def target(device: torch.device) -> str:
    """Return the family of GPUs that tiles are chosen for: sm_80 (also for unknown GPUs), sm_90, sm_100 or gfx942."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def tile(n: int, most: int) -> int:
    """Return the size of a tile for n: the next power of two, at least 16 as tl.dot needs, and at most `most`."""
    return max(16, min(1 << (n - 1).bit_length(), most))
