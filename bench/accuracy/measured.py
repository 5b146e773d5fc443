"""One model's records in bench/records/front, as rows of the tasks that count."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparsekit import recipes
from sparsekit.commands.options import EMBEDDED
from sparsekit.evaluation.page import thousands
from sparsekit.evaluation.records import Record, Records
from sparsekit.evaluation.rows import OWN, Row, front, that_count
from sparsekit.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Measured:
    """Records of one model, one dtype, one text."""

    lines: tuple[Record, ...]

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Return those of a file. Raises ValueError for one without a run."""
        found = cls(tuple(Records(path).lines))
        if not found.headers:
            raise ValueError(f"records: got {path.name} without a run; allowed is what sparsekit eval wrote: remove it")
        return found

    @cached_property
    def headers(self) -> list[Record]:
        return [line for line in self.lines if line["kind"] == "run"]

    @property
    def model(self) -> str:
        return self.headers[0]["model"]

    @property
    def unit(self) -> str:
        """What lengths are in."""
        return self.headers[0].get("unit", "bytes")  # those of the embedded model do not say

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Of the tasks that count."""
        return front(that_count(self.lines))

    @cached_property
    def uncounted(self) -> dict[int, dict[str, Estimate]]:
        """By length: the tasks that do not count, and what dense attention finds of them."""
        dense = (row for row in front(self.lines) if row.pipeline == OWN)
        return {row.length: {task: row.tasks[task] for task in row.uncounted} for row in dense}

    @property
    def tasks(self) -> set[str]:
        """All that were asked."""
        return {line["task"] for line in self.lines if line["kind"] == "answers"}

    @property
    def lengths(self) -> list[int]:
        return sorted({row.length for row in self.rows})

    def named(self, length: int) -> str:
        """ "128K bytes"."""
        return f"{thousands(length)} {self.unit}"

    def at(self, length: int) -> list[Row]:
        return [row for row in self.rows if row.length == length]

    def dense(self, length: int) -> Row:
        """The fastest dense attention, or the first where nothing was timed."""
        return max((row for row in self.at(length) if row.dense), key=lambda row: row.speed_up or 0)

    def pipeline(self, name: str, length: int) -> Row | None:
        """The row of a pipeline by its name."""
        return next((row for row in self.at(length) if row.pipeline == name and row.right), None)

    def recipe(self, name: str, length: int) -> Row | None:
        """The row of what a recipe is today, whatever it was called when it was asked."""
        what = recipes.PIPELINES[name]().to_spec()
        return next((row for row in self.at(length) if row.spec == what and row.right), None)

    def answers(self, row: Row) -> int:
        """How many were asked for, of tasks that count."""
        mine = (x for x in self.lines if x["kind"] == "answers" and _of(x) == (row.pipeline, row.length))
        return sum(line["answers"] for line in mine if line["task"] in row.tasks)

    def differences(self, row: Row) -> dict[str, Estimate | None]:
        """From dense attention, by task."""
        both = (row.pipeline, row.length), (OWN, row.length)
        mine = [line for line in self.lines if line["kind"] == "answers" and _of(line) in both]
        by_task = {task: front(line for line in mine if line["task"] == task) for task in row.tasks}
        return {task: rows[-1].difference for task, rows in by_task.items()}  # dense comes first


def read_all(folder: Path) -> list[Measured]:
    """Return the records of each file of a folder: real models by name, then the embedded one."""
    found = [Measured.read(path) for path in sorted(folder.glob("*.jsonl"))]
    return sorted(found, key=lambda one: (one.model == EMBEDDED, one.model))


def _of(line: Record) -> tuple[str, int]:
    return line["pipeline"], line["length"]


def runs_of_times(lines: Iterable[Record]) -> set[str]:
    """Return the runs that the rows' times are of: of several prices the newest counts."""
    return set({_of(line): line["run"] for line in lines if line["kind"] == "price"}.values())
