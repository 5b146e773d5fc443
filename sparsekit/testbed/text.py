"""Reads the text in which facts are hidden: real source code.

The default is the source of the running interpreter's standard library, which every machine has. The embedded model
never saw it in training (bench/model/corpus.py keeps it and its copies out).
"""

import codecs
import sysconfig
from pathlib import Path

SHORTEST = 1024
# Left out: other people's packages, tests full of generated data, caches, and files from the build of this Python.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
BUILD = ("_sysconfigdata", "config-")

# UTF-32 stands before UTF-16: the little-endian mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: str | Path | None = None) -> bytes:
    """Return the text of the file `path` as UTF-8, or, for None, the Python standard library's source (about 10 MB).

    Raises ValueError for a file that cannot be read, is too short, or is not text (see `as_utf8`).
    """
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


def as_utf8(data: bytes, name: str) -> bytes:
    """Return the text in a file's bytes as UTF-8, without a byte order mark.

    A byte order mark of UTF-8, UTF-16 or UTF-32 decides the encoding; without a mark the text must be UTF-8. Raises
    ValueError for bytes that are not text (`no_text`); `name` is the file's name in the message.
    """
    if why := no_text(data):
        raise ValueError(
            f"{name} is not text: {why}; allowed is text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark: pass "
            "a text file, or convert it, for example with iconv -t UTF-8"
        )
    mark, encoding = _marked(data)
    return data[len(mark) :].decode(encoding).encode()


def no_text(data: bytes) -> str | None:
    """Return a message about the first byte that cannot be in a text, or None if the data is text."""
    mark, encoding = _marked(data)
    body, bad, why = data[len(mark) :], None, ""
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        bad, text = error.start, body[: error.start].decode(encoding)
        why = f"not {encoding.upper()}{', which its first bytes announce' if mark else ''}"
    if (at := text.find("\0")) >= 0:
        bad, why = len(text[:at].encode(encoding)), "a NUL"
    return None if bad is None else f"byte {len(mark) + bad} is {why}"


def _marked(data: bytes) -> tuple[bytes, str]:
    """Return the byte order mark and the encoding that it announces."""
    return next(((mark, name) for mark, name in MARKS.items() if data.startswith(mark)), (b"", "utf-8"))


def standard_library(root: Path) -> list[Path]:
    """Return the .py files of the standard library in `root`, in a fixed order."""
    return sorted(file for file in root.rglob("*.py") if not _excluded(file.relative_to(root)))


def _excluded(file: Path) -> bool:
    return any(part in EXCLUDED or part.startswith(BUILD) for part in file.parts)


def _read_file(path: Path) -> bytes:
    try:
        text = as_utf8(path.read_bytes(), f"path={str(path)!r}")
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
