"""Pack files of records, of accuracy and of speed: python -m bench.accuracy.pack FILE...

A file that `bench.accuracy.run` or `sparsekit eval --out` wrote has a line for each prompt. A packed file has one line
for each pipeline, length and task: values that its prompts share are written once, the others as lists in the order of
the prompts. Then, in files of speed too, fields that several lines share become a line of their own, a part, before
the first of these lines. A part's name is a hash of it, so packing again after more lines leaves other parts as they
are. All data that figures and intervals are computed from stay. The texts of answers are dropped: no figure uses them.
`Records` and `bench.records.read` read all forms, and more lines may follow.
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
SAME = ("kind", "pipeline", "what", "length", "task")  # lines that agree in these are packed together
GONE = "answer"
# fields whose values often repeat together: each group may be a part; a field belongs to the first group that has it
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
LISTS = (("run", "seed"), ("tokens",), ("values",), ("found",))  # the same for lists
SHORT = 4  # letters of a part's name, at least
COST = 30  # letters that a part adds; shorter parts stay in their lines, which are then easier to read


def packed(lines: Iterable[Record]) -> list[Record]:
    """Return parts and lines; lines of the same pipeline, length and task become one, in the place of the first."""
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
        del same["run"]  # a record that occurs twice stays two: one field must be a list
    return same | {EACH: {name: [line[name] for line in group] for name in first if name not in same}}


def _shared(lines: list[Record]) -> Iterator[Record]:
    """Yield the lines, with parts where they save letters, each part before the first line that has it."""
    often = Counter(dumped(part) for line in lines for part in _parts(line))
    names: dict[str, str] = {}  # of parts already written, by their text
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
    """Yield the possible parts of a line; no two of them share a field."""
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
    """Return the shortest start of a hash of the text that is not the name of another part."""
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
