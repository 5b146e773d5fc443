"""Our own kernels for Hopper, in Gluon: a language of Triton's compiler in which a kernel assigns work to its warps.

One warp of a program lets the copy engine copy tiles into shared memory. Two groups of four warps compute, 64 rows
each. Barriers make them wait for each other. A program computes several items in turn, and copies the next one while
it computes the current one.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsekit.dispatch import capability, no_gpu

VERSIONS = ("3.6",)  # versions of Triton that these kernels were tested on: Gluon changes with each
HEAD_DIMS = (64, 128)
REGISTERS = 168  # registers of a thread when a program starts: an SM has 65,536 for 384 threads
COMPUTING, COPYING = 240, 24  # registers of a thread once warps compute or copy


def missing(device: torch.device) -> str | None:
    """Return why these kernels cannot run on this device, or None: they need a Hopper GPU and one version of Triton."""
    if reason := no_gpu(device, "a Hopper GPU"):
        return reason
    if torch.version.hip:
        return "it needs a Hopper GPU, and this one is not NVIDIA's: take triton"
    if (major := capability(device)[0]) != 9:
        return f"it needs a Hopper GPU (compute capability 9.0), and this one has {major}.x: take triton"
    try:
        from triton import __version__  # an optional extra
    except ImportError:
        return "triton is not installed: pip install sparsekit[triton]"
    if ".".join(__version__.split(".")[:2]) not in VERSIONS:
        return f"it was written for Triton {VERSIONS[-1]}, and this is Triton {__version__}: take triton"
    return None


def why_not_here(*tensors: Tensor) -> str | None:
    """Return why these kernels, on a Hopper GPU, cannot run on these tensors, or None."""
    for x in tensors:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return f"{x.dtype} is not supported: cast to bfloat16 or float16"
        if x.shape[3] not in HEAD_DIMS:
            return f"head dim {x.shape[3]} is not supported; allowed are 64 and 128: take triton"
    return None


@cache
def programs(device: torch.device) -> int:
    """Return the number of programs that run at a time: one per SM."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def readable(x: Tensor) -> Tensor:
    """Return the tensor itself if the copy engine can read it, otherwise a copy."""
    from ..triton.attend import fits_descriptor

    return x if x.stride(3) == 1 and fits_descriptor(x) else x.contiguous()


def described(x: Tensor, box: list[int]) -> Any:
    """Return the descriptor by which the copy engine reads boxes of this shape from the tensor."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), box, layout(box, x.dtype))


def layout(box: list[int], dtype: torch.dtype) -> Any:
    """Return the layout of such a box in shared memory, as the tensor cores read it."""
    from triton.experimental.gluon import language as gl

    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}[dtype]
    if len(box) == 1:
        return gl.NVMMASharedLayout(0, kind.primitive_bitwidth, rank=1)
    return gl.NVMMASharedLayout.get_default_for(box, kind)
