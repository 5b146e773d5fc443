"""FlashAttention: its authors' kernels, imported when first needed.

They are called through their public functions; `launch` alone looks inside.
"""

import importlib
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from threading import Lock, get_ident
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparsekit import dispatch

FOURTH = (9, 10, 11)  # major compute capabilities on which FlashAttention-4 supports block lists


def missing(device: torch.device) -> str | None:
    """Return why no version of FlashAttention can run on this device, or None; torch ships one version."""
    if reason := dispatch.no_gpu(device, "an NVIDIA GPU"):
        return reason
    if torch.version.hip:
        return "it needs an NVIDIA GPU, and this one is not: take triton"
    if (major := dispatch.capability(device)[0]) < 8:
        return f"it needs a GPU of compute capability 8.0 or newer, and this one has {major}.x"
    return None


def fourth_missing(major: int) -> str | None:
    """Return why FlashAttention-4 cannot be used here on GPUs of compute capability `major`.x, or None."""
    if major not in FOURTH:
        does = "silently ignores them" if major == 8 else "has no kernel for them"
        return f"it {does} on GPUs of compute capability {major}.x"
    return _not_imported()


@cache
def _not_imported() -> str | None:
    try:
        importlib.import_module("flash_attn.cute")  # seconds
        beta = re.fullmatch(r"4\.0\.0b(\d+)", version("flash-attn-4"))
    except ImportError as error:
        return f"it cannot be imported ({error}): pip install sparsekit[flash]"
    if beta and int(beta[1]) < 34:
        return f"beta {beta[1]} is older than beta 34: pip install sparsekit[flash]"
    return None


@cache
def third() -> ModuleType | None:
    """Return FlashAttention-3 if it is installed, or None: it is built by hand, for Hopper."""
    try:
        return importlib.import_module("flash_attn_interface")
    except ImportError:
        return None


Launch = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
_noting = Lock()


def launch(attend: Callable[..., tuple[Tensor, ...]], q: Tensor, k: Tensor, v: Tensor) -> Launch | None:
    """Return the launch of `attend(q, k, v)` by FlashAttention-4: a function of `plain` tensors q, k, v and output.

    It serves all tensors of these shapes. In each call FlashAttention-4 looks up its compiled kernel, which takes the
    host longer than a short kernel takes the GPU. Here it is looked up once, and nothing is launched. Return None
    unless the call launches one kernel on these four tensors: another version may do otherwise.
    """
    from flash_attn.cute import interface

    forward: Any = getattr(interface, "_flash_attn_fwd", None)
    q, k, v = (x.detach() for x in (q, k, v))
    with _noting, torch.no_grad():
        if not hasattr(forward, "compile_cache"):
            return None
        notes = forward.compile_cache = _Notes(forward.compile_cache)
        try:
            out = attend(q, k, v)[0]
        finally:
            forward.compile_cache = notes.cache
    if len(notes.launched) != 1:
        return None
    kernel, given = notes.launched[0]
    mine, rest = [q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()], given[4:]
    if len(set(mine)) < 4 or [_place(x) for x in given[:4]] != mine or any(isinstance(x, Tensor) for x in rest):
        return None
    return lambda q, k, v, out: kernel(q, k, v, out, *rest)


def plain(x: Tensor) -> bool:
    """Return whether a compiled kernel can read the tensor: contiguous rows aligned to 16 bytes, without gradients."""
    *steps, last = x.stride()
    step = 16 // x.itemsize
    aligned = last == 1 and x.data_ptr() % 16 == 0 and not any(n % step for n in steps)
    return aligned and type(x) is Tensor and not x.requires_grad


def _place(x: Any) -> int | None:
    return x.data_ptr() if isinstance(x, Tensor) else None


class _Notes:
    """A stand-in for a cache of compiled kernels: it records what this thread would launch, and launches nothing."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.launched: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._thread = get_ident()

    def __contains__(self, key: Any) -> bool:
        return key in self.cache

    def __setitem__(self, key: Any, kernel: Any) -> None:
        self.cache[key] = kernel

    def __getitem__(self, key: Any) -> Callable[..., Any]:
        kernel = self.cache[key]
        return kernel if get_ident() != self._thread else lambda *given: self.launched.append((kernel, given))
