"""Pack files of records, of accuracy and of speed: python -m bench.accuracy.pack FILE...

A file that `bench.accuracy.run` or `sparsekit eval --out` wrote has a line for each prompt. Packed it has one for each
pipeline, length and task: what its prompts share stands once, the rest as lists, in the order they were asked. Then, in
files of speed too, what several lines have in common is a line of its own, a part, before the first of them; a part's
name is a hash of it, so that packing again, after more lines, leaves the others as they are. Nothing is lost that a
figure or an interval is computed from. The texts of answers go: no figure is of them. `Records` and
`bench.records.read` read all forms, and more lines may follow.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from sparsekit.evaluation.records import EACH, OF, PART, Record, unpacked
from sparsekit.files import write_whole

PACKED = ("answers", "after")  # kinds that have a line for each prompt or text
SAME = ("kind", "pipeline", "what", "length", "task")  # what a packed line is of
GONE = "answer"
# names whose values are often the same together: each of these may be a part; a name is of the first that has it
SHARED = (
    ("gpu", "versions", "commit", "clean"),
    ("run", "date"),
    ("model", "weights", "text", "dtype", "rope"),
    ("pipeline", "what"),
    ("case",),
    ("shape", "length", "inputs", "auto"),
    ("dense", "dense_ms", "flash2_ms"),
    ("kind", "task", "tokens"),
)
LISTS = (("run", "seed"), ("tokens",), ("values",), ("found",))  # likewise, among the lists
SHORT = 4  # letters of a part's name, at least
COST = 30  # letters that a part takes beside what stands in it; shorter ones stay in their lines, for who reads them


def packed(lines: Iterable[Record]) -> list[Record]:
    """Return parts and lines, those of the same pipeline, length and task as one, where the first of them stood."""
    groups: dict[object, list[Record]] = {}
    for number, line in enumerate(lines):
        line = {name: value for name, value in line.items() if name != GONE}
        alike = (*(line.get(name) for name in SAME), tuple(sorted(line))) if line.get("kind") in PACKED else number
        groups.setdefault(alike, []).append(line)
    return list(_shared([_one(group) if len(group) > 1 else group[0] for group in groups.values()]))


def _one(group: list[Record]) -> Record:
    first = group[0]
    same = {name: value for name, value in first.items() if all(line[name] == value for line in group)}
    if len(same) == len(first):
        del same["run"]  # the same record twice is two
    return same | {EACH: {name: [line[name] for line in group] for name in first if name not in same}}


def _shared(lines: list[Record]) -> Iterator[Record]:
    """Yield the lines with what pays as a part, each part before the first line that has it."""
    often = Counter(dumped(part) for line in lines for part in _parts(line))
    names: dict[str, str] = {}  # of parts that have been told, by what stands in them
    for line in lines:
        mine: list[Record] = []
        for part in _parts(line):
            text = dumped(part)
            if len(text) < COST or (often[text] - 1) * len(text) <= COST + (SHORT + 3) * often[text]:
                continue
            if text not in names:
                names[text] = _name(text, names.values())
                yield {PART: names[text]} | part
            mine.append(part)
        yield _without(line, mine) | ({OF: [names[dumped(part)] for part in mine]} if mine else {})


def _parts(line: Record) -> Iterator[Record]:
    """Yield what may be a part of a line; no two of them have a name in common."""
    for group in SHARED:
        if part := {name: line[name] for name in group if name in line}:
            yield part
    for group in LISTS:
        if lists := {name: line[EACH][name] for name in group if name in line.get(EACH, {})}:
            yield {EACH: lists}


def _without(line: Record, parts: list[Record]) -> Record:
    gone = {name for part in parts for name in part if name != EACH}
    listed = {name for part in parts for name in part.get(EACH, {})}
    rest = {name: value for name, value in line.items() if name not in gone}
    if left := {name: values for name, values in rest.pop(EACH, {}).items() if name not in listed}:
        rest[EACH] = left
    return rest


def _name(text: str, taken: Iterable[str]) -> str:
    """Return the start of a hash of the text that is no other part's name."""
    digest, others = sha256(text.encode()).hexdigest(), set(taken)
    return next(digest[:end] for end in range(SHORT, len(digest)) if digest[:end] not in others)


def dumped(line: Record) -> str:
    """Return the text of a line."""
    return json.dumps(line, separators=(",", ":"))


def main(files: Annotated[list[Path], typer.Argument(help="Files of records", exists=True, dir_okay=False)]) -> None:
    """Rewrite files of records, packed."""
    for path in files:
        lines = packed(unpacked(map(json.loads, path.read_text().splitlines())))
        write_whole(path, "".join(f"{dumped(line)}\n" for line in lines))


if __name__ == "__main__":
    typer.run(main)
