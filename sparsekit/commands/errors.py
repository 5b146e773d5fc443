"""Whatever goes wrong, as one line on stderr."""

import os
import sys
import traceback
from typing import Any

import torch

from ..dispatch import NoBackendError

TRACEBACK = "SPARSEKIT_TRACEBACK"  # set in the environment, it shows where an error came from
SAID = (ValueError, ImportError, OSError, NoBackendError)  # their text says what is wrong


def one_line(text: object) -> str:
    """Return a text with its lines joined and without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))


def said(error: BaseException) -> str:
    """Return in one line what went wrong and, where the error itself does not say it, what to do."""
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return f"there is not enough memory ({_what(error)}); use a shorter prompt, or another --device"
    if isinstance(error, SAID) and str(error) and not isinstance(error, UnicodeError):
        return one_line(error)
    return f"{_what(error)}: sparsekit did not expect that; {TRACEBACK}=1 in the environment shows where it happened"


def report(error: BaseException) -> None:
    """Print what went wrong to stderr: one line, or the whole traceback if the user asked for it."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(f"sparsekit: {said(error)}", file=sys.stderr)


def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """Print a warning to stderr as one line, without the place in the code: for `warnings.showwarning`."""
    text = one_line(message)
    print(text if text.startswith("sparsekit:") else f"sparsekit: {category.__name__}: {text}", file=sys.stderr)


def _out_of_memory(error: BaseException) -> bool:
    words = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _what(error: BaseException) -> str:
    text = one_line(error)
    return f"{type(error).__name__}{text and f': {text[:300]}'}"
