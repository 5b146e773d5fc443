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
    """The records of one model, one dtype and one text."""

    lines: tuple[Record, ...]

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Return the records of a file. Raises ValueError for a file without a run."""
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
        """The unit of lengths."""
        return self.headers[0].get("unit", "bytes")  # headers of the embedded model name no unit

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the tasks that count."""
        return front(that_count(self.lines))

    @cached_property
    def uncounted(self) -> dict[int, dict[str, Estimate]]:
        """The tasks that do not count, with dense attention's answers to them, by length."""
        dense = (row for row in front(self.lines) if row.pipeline == OWN)
        return {row.length: {task: row.tasks[task] for task in row.uncounted} for row in dense}

    @property
    def tasks(self) -> set[str]:
        """All tasks in the records."""
        return {line["task"] for line in self.lines if line["kind"] == "answers"}

    @property
    def lengths(self) -> list[int]:
        return sorted({row.length for row in self.rows})

    def named(self, length: int) -> str:
        """Return a length with its unit, such as "128K bytes"."""
        return f"{thousands(length)} {self.unit}"

    def at(self, length: int) -> list[Row]:
        return [row for row in self.rows if row.length == length]

    def dense(self, length: int) -> Row:
        """Return the row of the fastest dense attention, or of the first if nothing was timed."""
        return max((row for row in self.at(length) if row.dense), key=lambda row: row.speed_up or 0)

    def pipeline(self, name: str, length: int) -> Row | None:
        """Return the row of a pipeline by its name, or None."""
        return next((row for row in self.at(length) if row.pipeline == name and row.right), None)

    def recipe(self, name: str, length: int) -> Row | None:
        """Return the row of the pipeline that a recipe is today, whatever its name in the records, or None."""
        what = recipes.PIPELINES[name]().to_spec()
        return next((row for row in self.at(length) if row.spec == what and row.right), None)

    def answers(self, row: Row) -> int:
        """Return the number of answers asked for, of tasks that count."""
        mine = (x for x in self.lines if x["kind"] == "answers" and _of(x) == (row.pipeline, row.length))
        return sum(line["answers"] for line in mine if line["task"] in row.tasks)

    def differences(self, row: Row) -> dict[str, Estimate | None]:
        """Return the difference from dense attention, by task."""
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
    """Return the runs in which the rows' times were measured; if a row was timed several times, the newest counts."""
    return set({_of(line): line["run"] for line in lines if line["kind"] == "price"}.values())
