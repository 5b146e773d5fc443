"""Results in a file: one a line, appended and never changed. Lines of one run share its id."""

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Iterator
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
SOME = 64  # numbers of each parameter that tell weights apart
Record = dict[str, Any]


class Records:
    """The lines of a file, and how more get there. Without a path they are held in memory alone.

    A line is a record, or several packed (bench/accuracy/pack.py). Raises ValueError for a line that is neither. The
    start of a line, which a run that was killed left at the end, is taken off: `torn` is its number of bytes.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.lines: list[Record] = []
        self.torn = 0
        if self.path is not None and self.path.exists():
            whole = self.path.read_bytes()
            end = whole.rfind(b"\n") + 1
            read = (_record(self.path, number, line) for number, line in enumerate(whole[:end].splitlines(), 1))
            self.lines = [record for line in read for record in unpacked(line)]
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


def unpacked(line: Record) -> Iterator[Record]:
    """Yield the records of a line: one, or as many as its lists have entries."""
    if EACH not in line:
        yield line
        return
    same = {name: value for name, value in line.items() if name != EACH}
    lists: dict[str, list[Any]] = line[EACH]
    for values in zip(*lists.values(), strict=True):
        yield same | dict(zip(lists, values, strict=True))


def with_new_names(line: Record) -> Record:
    """Return a record with specs that call parameters as they are called now, so that old and new ones are of one."""
    return line | {name: by_new_names(line[name]) for name in SPECS if isinstance(line.get(name), str)}


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        found = json.loads(line)
        if "kind" in found and "run" in (found | found.get(EACH, {})):
            return with_new_names(found)
    except (ValueError, TypeError):
        pass
    raise ValueError(
        f"out: line {number} of {str(path)!r} is no record; allowed is a file that sparsekit eval wrote, or a new one: "
        "pass another path"
    )
