"""Whole files: they are written under another name first, so that a reader never gets half of one."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: str | Callable[[Path], object]) -> Path:
    """Write text in UTF-8, or call `content` with a path to write to. Return `path`.

    An old file at `path` stays until all is written, and if that fails. The other name has the suffix of `path`.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if isinstance(content, str):
            unfinished.write_text(content, encoding="utf-8")
        else:
            content(unfinished)
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
