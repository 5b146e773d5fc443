"""Our own kernels, in Triton: no nvcc, any GPU Triton knows; in its interpreter also on a CPU, for tests."""

import os
from functools import cache

import torch
from torch import Tensor

from sparsekit.dispatch import no_gpu


def missing(device: torch.device) -> str | None:
    """In words, what Triton lacks to run on this device: a GPU, unless it is interpreted, and itself."""
    if not _interpreted() and (reason := no_gpu(device)):
        return reason
    try:
        import triton  # noqa: F401  # an optional extra
    except ImportError:
        return "triton is not installed: pip install sparsekit[triton]"
    return None


def why_not_here(*tensors: Tensor) -> str | None:
    """In words, why Triton, which is here, cannot run on these tensors."""
    interpreted = _interpreted()
    for x in tensors:
        if x.dtype.itemsize == 8 and not interpreted:
            return f"{x.dtype} is not supported: cast to float32"
        if str(x.dtype) == "torch.bfloat16" and interpreted:
            return "Triton's interpreter gets bfloat16 wrong"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def target(device: torch.device) -> str:
    """The family of GPUs that tiles are chosen for: sm_80, sm_90, sm_100, gfx942; the first for any other."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def tile(n: int, most: int) -> int:
    """A power of two that tl.dot takes, near n."""
    return max(16, min(1 << (n - 1).bit_length(), most))
