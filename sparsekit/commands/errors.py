"""Errors and warnings of the command line, each as one line on stderr."""

import os
import sys
import traceback
from typing import Any

TRACEBACK = "SPARSEKIT_TRACEBACK"  # if it is set in the environment, the whole traceback is printed
SELF_EXPLAINING = (ValueError, ImportError, OSError)  # their text says what is wrong
LONGEST = 1000  # characters of a line


def one_line(text: object) -> str:
    """Return a text on one line, control characters escaped; a very long text loses its middle."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def error_text(error: BaseException) -> str:
    """Return one line that says what went wrong and, where the error itself does not say it, what to do."""
    if isinstance(error, SELF_EXPLAINING) and not isinstance(error, UnicodeError) and str(error):
        return one_line(error)
    import torch

    from ..dispatch import NoBackendError

    if isinstance(error, NoBackendError):
        return one_line(error)
    text = str(error).strip()
    first = one_line(text.splitlines()[0]) if text else ""  # torch adds a stack of C++ calls below
    what = f"{type(error).__name__}{first and ': '}{first}"
    if _about(error, MemoryError, torch.OutOfMemoryError, words=("out of memory", "enough memory", "allocate memory")):
        return (
            f"there is not enough memory ({what}): pass a shorter prompt, for example with --most, or another --device"
        )
    if _about(error, OverflowError, words=("overflow",)):
        return f"a number is too large to compute with ({what}): pass a smaller one"
    if _about(error, RecursionError):
        return f"the pipeline is nested too deeply ({what}): write it with fewer parentheses"
    return f"{what}: sparsekit did not expect this error; {TRACEBACK}=1 in the environment shows where it happened"


def _about(error: BaseException, *types: type[BaseException], words: tuple[str, ...] = ()) -> bool:
    """Return whether an error has one of the types, or is torch's and has one of the words: torch has few types."""
    torchs = isinstance(error, RuntimeError | TypeError) and any(word in str(error).lower() for word in words)
    return isinstance(error, types) or torchs


def report(error: BaseException) -> None:
    """Print an error to stderr as one line, after the whole traceback if TRACEBACK is set."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(f"sparsekit: {error_text(error)}", file=sys.stderr)


def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """Print a warning to stderr as one line without its place in the code; it replaces `warnings.showwarning`."""
    text = one_line(message)
    print(text if text.startswith("sparsekit:") else f"sparsekit: {category.__name__}: {text}", file=sys.stderr)
