"""Our own kernels, in Triton: no nvcc, any GPU Triton knows; in its interpreter also on a CPU, for tests."""

import os
from functools import cache

import torch
from torch import Tensor


def why_not_here(*tensors: Tensor) -> str | None:
    """In words, why Triton cannot run on where these tensors lie."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    try:
        import triton  # noqa: F401  # an optional extra
    except ImportError:
        return "triton is not installed: pip install sparsekit[triton]"
    for x in tensors:
        if not x.is_cuda and not interpreted:
            return f"it needs a GPU, and the tensors are on {x.device.type}"
        if x.dtype.itemsize == 8 and not interpreted:
            return f"{x.dtype} is not supported: cast to float32"
        if str(x.dtype) == "torch.bfloat16" and interpreted:
            return "Triton's interpreter gets bfloat16 wrong"
    return None


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
