"""Pack records of accuracy: python -m bench.accuracy.pack FILE...

A file that `bench.accuracy.run` or `sparsekit eval --out` wrote has a line for each prompt. Packed it has one for each
pipeline, length and task: what its prompts share stands once, the rest as lists, in the order they were asked. Nothing
is lost that a figure or an interval is computed from. The texts of answers go: no figure is of them. `Records` reads
both forms, and more lines may follow.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from sparsekit.evaluation.records import EACH, Record, Records
from sparsekit.files import write_whole

PACKED = ("answers", "after")  # kinds that have a line for each prompt or text
SAME = ("kind", "pipeline", "what", "length", "task")  # what a packed line is of
GONE = "answer"


def packed(lines: Iterable[Record]) -> list[Record]:
    """Return the lines, those of the same pipeline, length and task as one, where the first of them stood."""
    groups: dict[object, list[Record]] = {}
    for number, line in enumerate(lines):
        line = {name: value for name, value in line.items() if name != GONE}
        alike = (*(line.get(name) for name in SAME), tuple(sorted(line))) if line["kind"] in PACKED else number
        groups.setdefault(alike, []).append(line)
    return [_one(group) if len(group) > 1 else group[0] for group in groups.values()]


def _one(group: list[Record]) -> Record:
    first = group[0]
    same = {name: value for name, value in first.items() if all(line[name] == value for line in group)}
    if len(same) == len(first):
        del same["run"]  # the same record twice is two
    return same | {EACH: {name: [line[name] for line in group] for name in first if name not in same}}


def main(files: Annotated[list[Path], typer.Argument(help="Files of records", exists=True, dir_okay=False)]) -> None:
    """Rewrite files of records, packed."""
    for path in files:
        text = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in packed(Records(path).lines))
        write_whole(path, text)


if __name__ == "__main__":
    typer.run(main)
