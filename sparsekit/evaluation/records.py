"""Results in a file: one a line, appended and never changed. Lines of one run share its id."""

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
EACH = "each"  # of a packed line: by name, a list of what the records of it do not share
SPECS = "pipeline", "what"  # fields that may hold one
PART = "part"  # of a line that is no record: the name of what else stands in it, which later lines share
OF = "of"  # of a packed line: the names of the parts that belong to it
SOME = 64  # numbers of each parameter that tell weights apart
Record = dict[str, Any]


class Records:
    """The lines of a file, and how more get there. Without a path they are held in memory alone.

    A line is a record, or packed (bench/accuracy/pack.py): several, or what records share. Raises ValueError for a line
    that is neither. The start of a line, which a run that was killed left at the end, is taken off: `torn` is its
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
        """Each a whole line, written out before the next one begins."""
        self.lines += records
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                for record in records:
                    file.write(f"{json.dumps(record)}\n")
                    file.flush()


def provenance(model: Any, name: str, text: str, commit: str | None = None) -> Record:
    """Where a run came from: model, weights, dtype, rotary positions, chip, versions, commit, date, an id.

    `text` says which text facts are hidden in. `commit` is what `git describe --always --dirty --abbrev=40 --exclude
    '*'` says of the code; it ends in -dirty if the tree was not clean. None if nobody said.
    """
    what: Record = {"kind": "run", "model": name, "weights": fingerprint(model), "text": text}
    what["dtype"] = str(model.dtype).removeprefix("torch.")
    what["rope"] = getattr(model.config.get_text_config(), "rope_parameters", None)
    return what | origin(model.device, commit)


def fingerprint(model: torch.nn.Module) -> str:
    """Tells weights apart that have the same name: a hash of some of each parameter, the same in any dtype."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        if not weight.is_meta:  # one that is not in memory
            some = weight.detach().flatten()[:: max(1, weight.numel() // SOME)][:SOME]
            digest.update(some.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:12]


def origin(device: torch.device, commit: str | None) -> Record:
    """The part of it that is not about a model: an id, chip, versions, commit, whether the tree was clean, date."""
    return {
        "run": uuid.uuid4().hex[:12],
        "gpu": chip(device),
        "versions": versions(),
        "commit": commit.removesuffix("-dirty") if commit else None,
        "clean": not commit.endswith("-dirty") if commit else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Of torch, Python, and what of PACKAGES is installed."""
    found = {"torch": torch.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def unpacked(lines: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of the lines of a file: of a line none if it is a part, or as many as its lists have entries.

    A part may be told anew: lines below it mean the later one, as where one file was put behind another.
    """
    parts: dict[str, Record] = {}
    for line in lines:
        if PART in line:
            parts[line[PART]] = {name: value for name, value in line.items() if name != PART}
            continue
        same: Record = {}
        lists: dict[str, list[Any]] = {}
        for one in (*(parts[name] for name in line.get(OF, ())), line):
            same |= one
            lists |= one.get(EACH, {})
        same = {name: value for name, value in same.items() if name not in (EACH, OF)}
        if not lists:
            yield same
        for values in zip(*lists.values(), strict=True):
            yield same | dict(zip(lists, values, strict=True))


def with_new_names(line: Record) -> Record:
    """Return a record with specs that call parameters as they are called now, so that old and new ones are of one."""
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
            f"out: line {number} of {str(path)!r} is no record; allowed is a file that sparsekit eval wrote, or a new "
            "one: pass another path"
        ) from None
