"""Write files whole: under another name first, so that nobody ever reads half of one."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: str | Callable[[Path], object]) -> Path:
    """Write text, in UTF-8, or what `content` writes to the path that it is given. Return `path`.

    What was at `path` stays there until all is written, and stays if that fails. The other name ends as `path` does.
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
