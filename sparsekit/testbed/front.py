"""From records to rows: accuracy beside price, for each pipeline at each length, and which rows are on the front."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean as average

from .price import Spread
from .records import Record
from .statistics import Estimate, difference, mean

OWN = "dense"  # the model's own attention, as records call it


@dataclass(frozen=True)
class Row:
    """One pipeline at one length. What was not measured, or not in the same run as dense attention, is None."""

    pipeline: str  # its name
    what: str  # its spec
    length: int  # bytes of a prompt
    tokens: float  # of a prompt, mean
    dense: bool  # a dense contender; only the model's own attention is asked, as all compute the same pairs
    right: Estimate | None = None  # part of the answers that are right, in [0, 1]; dense: of the model's own attention
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # the same, by task
    difference: Estimate | None = None  # of that part from dense attention's, on the prompts that both were asked
    attention_ms: Spread | None = None  # over all layers, of a prompt
    first_token_ms: Spread | None = None
    kept: float | None = None  # part of the queries, in [0, 1], mean over layers
    density: float | None = None  # part of the dense pairs, in [0, 1], mean over layers
    speed_up: float | None = None  # of attention, medians, over the fastest dense contender of the same run
    over: str = ""  # that contender
    gpu: str = ""  # or CPU, that times are of
    ran_dense: Mapping[str, str] = field(default_factory=dict)  # by layer: why, in spite of the pipeline
    failed: str = ""  # why it stopped, if it did
    front: bool = False  # no other is as good in one of right and speed_up, and better in the other

    @property
    def family(self) -> str:
        """The first stage; "schedule" for one; "dense"."""
        if self.dense:
            return OWN
        return "schedule" if self.what.startswith("{") else re.split(r"\W", self.what, maxsplit=1)[0]


def front(records: Iterable[Record]) -> tuple[Row, ...]:
    """A row for each pipeline at each length: by length, dense first, then in the order of the records.

    A price counts only beside a dense one of its own run and length; of several the newest does.
    """
    lines = list(records)
    runs = {line["run"]: line for line in lines if line["kind"] == "run"}
    named: dict[tuple[int, str], list[Record]] = {}
    for line in lines:
        if line["kind"] != "run":
            named.setdefault((line["length"], line["pipeline"]), []).append(line)
    rows = []
    for length, name in sorted(named, key=lambda key: (key[0], not _dense(named[key]))):
        rows.append(_row(named[length, name], named.get((length, OWN), []), lines, runs))
    return tuple(replace(row, front=row in pareto([r for r in rows if r.length == row.length])) for row in rows)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Those that no other row beats: as good in one of `right` and `speed_up`, and better in the other."""
    placed = [(row, row.speed_up, row.right.value) for row in rows if row.right and row.speed_up]
    return [
        row
        for row, fast, good in placed
        if not any(f >= fast and g >= good and (f > fast or g > good) for _, f, g in placed)
    ]


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Those on the front, the slowest first: the order that tables and pictures number them in."""
    return sorted((row for row in rows if row.front), key=lambda row: row.speed_up or 0.0)


def _dense(mine: Sequence[Record]) -> bool:
    return mine[0]["what"] == OWN


def _row(mine: Sequence[Record], dense: Sequence[Record], lines: Sequence[Record], runs: Mapping[str, Record]) -> Row:
    """The row of the records of one pipeline at one length; `dense` are those of the model's own attention there."""
    theirs = _parts(dense)
    parts = theirs if _dense(mine) else _parts(mine)
    both = [key for key in parts if key in theirs]
    by_task: dict[str, list[float]] = {}
    for (task, _), part in parts.items():
        by_task.setdefault(task, []).append(part)
    first = mine[0]
    row = Row(
        first["pipeline"],
        first["what"],
        first["length"],
        average([line["tokens"] for line in mine if "tokens" in line] or [0]),
        _dense(mine),
        right=mean(list(parts.values())) if parts else None,
        tasks={task: mean(of) for task, of in by_task.items()},
        difference=None if _dense(mine) or not both else difference(*([of[k] for k in both] for of in (parts, theirs))),
        failed=mine[-1]["reason"] if mine[-1]["kind"] == "failed" else "",
    )
    price = next((line for line in reversed(mine) if line["kind"] == "price"), None)
    if price is None:
        return row
    rivals = [
        line
        for line in lines
        if line["kind"] == "price" and line["dense"] and (line["run"], line["length"]) == (price["run"], row.length)
    ]
    fastest = min(rivals, key=_median, default=None)
    of = lambda layers: average(layers.values()) if layers else 1.0 if row.dense else None  # noqa: E731
    return replace(
        row,
        attention_ms=Spread(**price["attention_ms"]),
        first_token_ms=Spread(**price["first_token_ms"]),
        kept=of(price["kept"]),
        density=of(price["density"]),
        speed_up=_median(fastest) / _median(price) if fastest else None,
        over=fastest["pipeline"] if fastest else "",
        gpu=runs[price["run"]]["gpu"],
        ran_dense=price["ran_dense"],
    )


def _median(price: Record) -> float:
    return price["attention_ms"]["p50"]


def _parts(lines: Iterable[Record]) -> dict[tuple[str, int], float]:
    """By task and seed: the part of the answers that is right."""
    return {(x["task"], x["seed"]): x["found"] / x["answers"] for x in lines if x["kind"] == "answers"}
