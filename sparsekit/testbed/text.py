"""The text that facts are hidden in: real source code.

Without a path it is the source of the Python standard library of the running interpreter, which every machine
has. The embedded model never saw it in training (bench/testbed/corpus.py keeps it and its copies out).
"""

import sysconfig
from pathlib import Path

SHORTEST = 1024
# Other people's packages, tests full of generated data, caches, and files written by the build of this Python.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
BUILD = ("_sysconfigdata", "config-")


def read_text(path: str | Path | None = None) -> bytes:
    """The bytes of the file `path`, or, for None, of the Python standard library's source (about 10 MB)."""
    if path is not None:
        return _read_file(Path(path))
    root = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(file.read_bytes() for file in standard_library(root))
    if len(text) < SHORTEST:
        raise ValueError(
            f"path=None means the Python standard library's source, but {root} holds only {len(text)} bytes of it; "
            "pass the path of a text file instead"
        )
    return text


def standard_library(root: Path) -> list[Path]:
    """Its .py files in a fixed order."""
    return sorted(file for file in root.rglob("*.py") if not _excluded(file.relative_to(root)))


def _excluded(file: Path) -> bool:
    return any(part in EXCLUDED or part.startswith(BUILD) for part in file.parts)


def _read_file(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"path={str(path)!r} cannot be read ({error.strerror}); pass a readable text file, or None for the "
            "Python standard library's source"
        ) from error
    if len(text) < SHORTEST:
        raise ValueError(
            f"path={str(path)!r} holds {len(text)} bytes; at least {SHORTEST} are needed: pass a longer file, or "
            "None for the Python standard library's source"
        )
    return text
