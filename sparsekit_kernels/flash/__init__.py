"""FlashAttention, the kernels of its authors, called through their public functions and imported when first needed."""

import importlib
import re
from functools import cache
from importlib.metadata import version
from types import ModuleType

FOURTH = (9, 10, 11)  # compute capabilities, major, where FlashAttention-4 knows block lists


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
