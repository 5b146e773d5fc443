"""Reads and writes results: one JSON line each, appended and never changed. Lines of one run share its id."""

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..chip import chip
from ..registry import by_new_names

PACKAGES = ("sparsekit", "triton", "flash-attn-4", "nvidia-cutlass-dsl", "transformers")
EACH = "each"  # field of a packed line: for each field that its records do not share, the list of their values
SPECS = "pipeline", "what"  # fields that may hold a spec
PART = "part"  # field of a line that is not a record but a part: its name; its other fields are shared by later lines
OF = "of"  # field of a packed line: the names of the parts whose fields its records have
SOME = 64  # numbers of each parameter that go into the fingerprint
Record = dict[str, Any]


class Records:
    """The records of a file, to which more can be appended. Without a path they are only held in memory.

    A line of the file is a record or packed (bench/accuracy/pack.py): several records, or fields that records share.
    Raises ValueError for any other line. An unfinished last line, which a killed run leaves, is cut off: `torn` is its
    number of bytes.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.lines: list[Record] = []
        self.torn = 0
        if self.path is not None and self.path.exists():
            whole = self.path.read_bytes()
            end = whole.rfind(b"\n") + 1
            self.lines = list(_read(self.path, whole[:end].splitlines()))
            self.torn = len(whole) - end
            if self.torn:
                os.truncate(self.path, end)

    def append(self, *records: Record) -> None:
        """Append records; each line is flushed before the next one begins."""
        self.lines += records
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                for record in records:
                    file.write(f"{json.dumps(record)}\n")
                    file.flush()


def provenance(model: Any, name: str, text: str, commit: str | None = None) -> Record:
    """Return the header of a run: model, weights, dtype, rotary positions, chip, versions, commit, date, an id.

    `text` identifies the text that facts are hidden in. `commit` is the output of `git describe --always --dirty
    --abbrev=40 --exclude '*'`, which ends in -dirty if the tree was not clean; None if it is unknown.
    """
    header: Record = {"kind": "run", "model": name, "weights": fingerprint(model), "text": text}
    header["dtype"] = str(model.dtype).removeprefix("torch.")
    header["rope"] = getattr(model.config.get_text_config(), "rope_parameters", None)
    return header | origin(model.device, commit)


def fingerprint(model: torch.nn.Module) -> str:
    """Return a hash of some numbers of each parameter, the same in any dtype: models of one name may differ."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        if not weight.is_meta:  # a meta weight is not in memory
            some = weight.detach().flatten()[:: max(1, weight.numel() // SOME)][:SOME]
            digest.update(some.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:12]


def origin(device: torch.device, commit: str | None) -> Record:
    """Return the part of a header that is not about a model: id, chip, versions, commit, clean tree or not, date."""
    return {
        "run": uuid.uuid4().hex[:12],
        "gpu": chip(device),
        "versions": versions(),
        "commit": commit.removesuffix("-dirty") if commit else None,
        "clean": not commit.endswith("-dirty") if commit else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of torch, Python and those of PACKAGES that are installed."""
    numbers = {"torch": torch.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def unpacked(lines: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of the lines of a file; a part yields none, a packed line as many as its lists have entries.

    Two parts may have the same name, as after two files were joined: each line refers to the last one above it.
    """
    parts: dict[str, Record] = {}
    for line in lines:
        if PART in line:
            parts[line[PART]] = {name: value for name, value in line.items() if name != PART}
            continue
        same: Record = {}
        lists: dict[str, list[Any]] = {}
        for source in (*(parts[name] for name in line.get(OF, ())), line):
            same |= source
            lists |= source.get(EACH, {})
        same = {name: value for name, value in same.items() if name not in (EACH, OF)}
        if not lists:
            yield same
        for values in zip(*lists.values(), strict=True):
            yield same | dict(zip(lists, values, strict=True))


def with_new_names(line: Record) -> Record:
    """Return a record whose specs use today's names of parameters, so that old and new records match."""
    return line | {name: by_new_names(line[name]) for name in SPECS if isinstance(line.get(name), str)}


def _read(path: Path, lines: Sequence[bytes]) -> Iterator[Record]:
    number = 0

    def loaded() -> Iterator[Record]:
        nonlocal number
        for number, line in enumerate(lines, 1):  # noqa: B007  # of the line that is being read
            yield json.loads(line)

    try:
        for record in unpacked(loaded()):
            if "kind" not in record or "run" not in record:
                raise KeyError("kind, run")
            yield with_new_names(record)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"out: line {number} of {str(path)!r} is no record; allowed is a file that sparsekit eval wrote, or a path "
            "without a file: pass another path"
        ) from None
