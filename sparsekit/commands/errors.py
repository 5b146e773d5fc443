"""Whatever goes wrong, as one line on stderr."""

import os
import sys
import traceback
from typing import Any

TRACEBACK = "SPARSEKIT_TRACEBACK"  # set in the environment, it shows where an error came from
SELF_EXPLAINING = (ValueError, ImportError, OSError)  # their text says what is wrong
LONGEST = 1000  # letters of a line


def one_line(text: object) -> str:
    """Return a text with its lines joined, without what a terminal would obey, and the middle of a very long one."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def error_text(error: BaseException) -> str:
    """Return in one line what went wrong and, where the error itself does not say it, what to do."""
    if isinstance(error, SELF_EXPLAINING) and not isinstance(error, UnicodeError) and str(error):
        return one_line(error)
    import torch

    from ..dispatch import NoBackendError

    if isinstance(error, NoBackendError):
        return one_line(error)
    text = str(error).strip()
    first = one_line(text.splitlines()[0]) if text else ""  # torch's go on with a stack of C++
    what = f"{type(error).__name__}{first and ': '}{first}"
    if _about(error, MemoryError, torch.OutOfMemoryError, words=("out of memory", "enough memory", "allocate memory")):
        return f"there is not enough memory ({what}): use a shorter prompt, for example by --most, or another --device"
    if _about(error, OverflowError, words=("overflow",)):
        return f"a number is too large to compute with ({what}): pass a smaller one"
    if _about(error, RecursionError):
        return f"something is nested too deeply ({what}): write it with fewer parentheses"
    return f"{what}: sparsekit did not expect that; {TRACEBACK}=1 in the environment shows where it happened"


def _about(error: BaseException, *types: type[BaseException], words: tuple[str, ...] = ()) -> bool:
    """Return whether an error is one of the types, or one by torch, which has few types, with one of the words."""
    torchs = isinstance(error, RuntimeError | TypeError) and any(word in str(error).lower() for word in words)
    return isinstance(error, types) or torchs


def report(error: BaseException) -> None:
    """Print what went wrong to stderr: one line, or the whole traceback if the user asked for it."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(f"sparsekit: {error_text(error)}", file=sys.stderr)


def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """Print a warning to stderr as one line, without the place in the code: for `warnings.showwarning`."""
    text = one_line(message)
    print(text if text.startswith("sparsekit:") else f"sparsekit: {category.__name__}: {text}", file=sys.stderr)
