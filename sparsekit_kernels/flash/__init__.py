"""FlashAttention, the kernels of its authors, called through their public functions and imported when first needed.

But for one thing: see `launch`.
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

FOURTH = (9, 10, 11)  # compute capabilities, major, where FlashAttention-4 knows block lists


def missing(device: torch.device) -> str | None:
    """In words, why FlashAttention cannot run on this device, whichever of its versions; torch ships one."""
    if reason := dispatch.no_gpu(device, "an NVIDIA GPU"):
        return reason
    if torch.version.hip:
        return "it needs an NVIDIA GPU, and this one is not: take triton"
    if (major := dispatch.capability(device)[0]) < 8:
        return f"it needs a GPU of compute capability 8.0 or newer, and this one has {major}.x"
    return None


def fourth_missing(major: int) -> str | None:
    """In words, why FlashAttention-4 does not serve GPUs of compute capability `major`.x here."""
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
    """FlashAttention-3, if it is installed: it is built by hand, for Hopper."""
    try:
        return importlib.import_module("flash_attn_interface")
    except ImportError:
        return None


Launch = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
_noting = Lock()


def launch(attend: Callable[..., tuple[Tensor, ...]], q: Tensor, k: Tensor, v: Tensor) -> Launch | None:
    """What FlashAttention-4 launches for `attend(q, k, v)`: a function of q, k, v and room for the output, all `plain`.

    It serves all tensors of these shapes. FlashAttention-4 finds out anew in each call which of its compiled kernels it
    wants, which takes its host longer than a short kernel takes the GPU. Here that is asked once, with nothing
    launched. None where it is not one kernel on these four tensors, as it may be in another version.
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
    """Whether a compiled kernel may be given it: rows of 16 bytes in a row, without gradients."""
    *steps, last = x.stride()
    step = 16 // x.itemsize
    aligned = last == 1 and x.data_ptr() % 16 == 0 and not any(n % step for n in steps)
    return aligned and type(x) is Tensor and not x.requires_grad


def _place(x: Any) -> int | None:
    return x.data_ptr() if isinstance(x, Tensor) else None


class _Notes:
    """In the place of a cache of compiled kernels: what this thread would launch is taken down, and not done."""

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
