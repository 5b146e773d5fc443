"""Our own kernels for Hopper, in Gluon, the language of Triton's compiler in which a kernel's parts are named.

One warp of a program copies tiles into shared memory, by the copy engine; two groups of four warps compute, each 64
rows. Who waits for whom is said by barriers. A program goes on to the next piece of work, so that the copies of one
are made while the other is computed.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsekit.dispatch import capability, no_gpu

VERSIONS = ("3.6",)  # of Triton, on which these kernels were run: Gluon changes from one to the next
HEAD_DIMS = (64, 128)
REGISTERS = 168  # of a thread when a program starts: 65,536 of an SM over 384 threads
COMPUTING, COPYING = 240, 24  # of a thread once the warps have parted


def missing(device: torch.device) -> str | None:
    """In words, what these kernels lack to run on this device: a Hopper GPU, or the Triton they were written for."""
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
    """In words, why these kernels, on a GPU that has them, cannot run on these tensors."""
    for x in tensors:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return f"{x.dtype} is not supported: cast to bfloat16 or float16"
        if x.shape[3] not in HEAD_DIMS:
            return f"head dim {x.shape[3]} is not supported; allowed are 64 and 128: take triton"
    return None


@cache
def programs(device: torch.device) -> int:
    """How many programs run at a time: one on each SM."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def readable(x: Tensor) -> Tensor:
    """The tensor itself if the copy engine can read it, or a copy."""
    from ..triton.attend import fits_descriptor

    return x if x.stride(3) == 1 and fits_descriptor(x) else x.contiguous()


def described(x: Tensor, box: list[int]) -> Any:
    """A description of the tensor by which the copy engine reads boxes of this shape from it."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), box, layout(box, x.dtype))


def layout(box: list[int], dtype: torch.dtype) -> Any:
    """How such a box lies in shared memory, as the tensor cores read it."""
    from triton.experimental.gluon import language as gl

    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}[dtype]
    if len(box) == 1:
        return gl.NVMMASharedLayout(0, kind.primitive_bitwidth, rank=1)
    return gl.NVMMASharedLayout.get_default_for(box, kind)
