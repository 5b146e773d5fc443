"""Records: one result per line, appended and never changed. A run's lines share its id; compare within one run only.

`python -m bench.accuracy.pack` writes fields that lines share once; more lines may follow, and it may be run again.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from sparsekit.evaluation.records import Record, origin, unpacked, with_new_names
from sparsekit.files import write_whole

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "bench" / "records"


def append(path: Path, records: Iterable[Record]) -> None:
    """Append whole lines to a file, never half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    write_whole(path, before + "".join(f"{json.dumps(record)}\n" for record in records))


def read(path: Path) -> list[Record]:
    """Return the records of a file. Old records, without a run, had other names for some fields: they get these names.

    Old names of parameters in their specs are replaced too.
    """
    return [with_new_names(_today(x)) for x in unpacked(map(json.loads, path.read_text().splitlines()))]


def foremost(records: list[Record]) -> list[Record]:
    """Return the records with the most frequent shape, inputs and dtype: those that belong in one table or picture."""
    of = lambda row: (row["shape"]["name"], row["inputs"], row["dtype"])  # noqa: E731
    most = Counter(map(of, records)).most_common(1)
    return [row for row in records if of(row) == most[0][0]]


def _today(record: Record) -> Record:
    if "run" in record:
        return record
    shape = record["shape"]
    return record | {
        "run": f"{record['commit'][:8]} {record['date'][:10]}, {shape['L']}",
        "gpu": record["device"],
        "length": shape["L"],
        "kind": "ours",
        "shape": {"name": "cpu"} | {axis: shape[axis] for axis in "HGD"},
        "inputs": "structured",
    }


def provenance(device: torch.device, commit: str | None = None) -> Record:
    """Return the origin of a run: the chip, versions, commit, date, and an id of its own.

    `commit` is for a machine without git: the output of `git describe --always --dirty --abbrev=40 --exclude '*'` in
    the repository of the code, which ends in -dirty if the tree was not clean. Without it git is run; the commit is
    None if there is no git.
    """
    return origin(device, commit or _described())


def path_for(device: torch.device) -> Path:
    """Return the file of a chip's records, such as bench/records/nvidia-h200.jsonl."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return FOLDER / f"{slug(name)}.jsonl"


def slug(name: str) -> str:
    """Return a name for files: "NVIDIA H200" becomes "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _described() -> str | None:
    if not shutil.which("git"):
        return None
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return ran.stdout.strip() or None
