"""From records to rows: accuracy beside price, for each pipeline at each length, and which rows are on the front."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean as average
from typing import Any, TypeAlias

from .price import Spread
from .records import Record
from .statistics import Estimate, certainty, difference, mean, mean_difference

Answers: TypeAlias = Mapping[tuple[str, int], tuple[int, int]]  # found and asked for, by task and seed of a prompt
OWN = "dense"  # the model's own attention, as records call it
COUNTS = 0.7  # part of a task's answers that dense attention must find for the task to count in a claim


@dataclass(frozen=True)
class Row:
    """One pipeline at one length. What was not measured, or not in the same run as dense attention, is None."""

    pipeline: str  # its name
    spec: str  # its spec
    length: int  # of a prompt, in the unit of the records
    tokens: float  # of a prompt, mean
    dense: bool  # a dense contender; only the model's own attention is asked, as all compute the same pairs
    right: Estimate | None = None  # part of the answers that are right, in [0, 1]; dense: of the model's own attention
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # the same, by task, of those that do not count, too
    difference: Estimate | None = None  # of that part from dense attention's, on the prompts that both were asked
    certainty: float | None = None  # the p-value of no such difference
    dense_part: float | None = None  # the part that dense attention finds of those prompts' answers
    dense_tasks: Mapping[str, float] = field(default_factory=dict)  # the same, by task
    text: Estimate | None = None  # loss of text that follows a prompt less dense attention's, nats per token
    kl: float | None = None  # of the distributions over that text from dense attention's, nats, mean over tokens
    agreement: float | None = None  # part of that text's tokens at which the likeliest is dense attention's, in [0, 1]
    attention_ms: Spread | None = None  # over all layers, of a prompt
    first_token_ms: Spread | None = None
    kept: float | None = None  # part of the queries, in [0, 1], mean over layers
    density: float | None = None  # part of the dense pairs, in [0, 1], mean over layers
    speed_up: float | None = None  # of attention, medians, over the fastest dense contender of the same run
    over: str = ""  # that contender
    gpu: str = ""  # or CPU, that times are of
    ran_dense: Mapping[str, str] = field(default_factory=dict)  # by layer: why, in spite of the pipeline
    failed: str = ""  # why it stopped, if it did
    uncounted: tuple[str, ...] = ()  # tasks that do not count; all of them where none does, and then `right` is of all
    front: bool = False  # no other is as good in one of standing and speed_up, and better in the other

    @property
    def standing(self) -> Estimate | None:
        """How far `right` is from dense attention's of the same prompts, or `right` where that was not asked."""
        if self.dense and self.right:
            return Estimate(0.0, 0.0, 0.0, self.right.n)
        return self.difference or self.right

    @property
    def family(self) -> str:
        """The first stage; "schedule" for one; "dense"."""
        if self.dense:
            return OWN
        return "schedule" if self.spec.startswith("{") else re.split(r"\W", self.spec, maxsplit=1)[0]


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


def that_count(records: Iterable[Record]) -> list[Record]:
    """Return the records without the answers to tasks of which dense attention finds less than COUNTS at that length.

    Below that, what is found is luck more than skill, and a loss cannot be told.
    """
    lines = list(records)
    good = {
        (row.length, task)
        for row in front(lines)
        if row.pipeline == OWN
        for task, part in row.tasks.items()
        if task not in row.uncounted
    }
    return [line for line in lines if line["kind"] != "answers" or (line["length"], line["task"]) in good]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Those that no other row beats: as good in one of `standing` and `speed_up`, and better in the other.

    What is right alone would favour who was asked easier prompts.
    """
    placed = [(row, row.speed_up, row.standing.value) for row in rows if row.standing and row.speed_up]
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
    theirs = _answers(dense)
    ours = theirs if _dense(mine) else _answers(mine)
    tasks = {task: {key: one for key, one in ours.items() if key[0] == task} for task, _ in ours}
    uncounted = tuple(task for task in tasks if not _counts(task, theirs))
    counted = {key: one for key, one in ours.items() if key[0] not in uncounted} or ours
    first = mine[0]
    row = Row(
        first["pipeline"],
        first["what"],
        first["length"],
        average([line["tokens"] for line in mine if line["kind"] != "after" and "tokens" in line] or [0]),
        _dense(mine),
        right=mean(_parts(counted), _each(counted)) if counted else None,
        tasks={task: mean(_parts(of), _each(of)) for task, of in tasks.items()},
        failed=mine[-1]["reason"] if mine[-1]["kind"] == "failed" else "",
        uncounted=uncounted,
    )
    if not row.dense:
        pairs = {task: _pairs(of, theirs) for task, of in tasks.items()}
        row = replace(row, **_against_dense(counted, theirs), **_text(mine, dense))
        row = replace(row, dense_tasks={task: average(pair[1]) for task, pair in pairs.items() if pair[1]})
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


def _answers(lines: Iterable[Record]) -> Answers:
    return {(x["task"], x["seed"]): (x["found"], x["answers"]) for x in lines if x["kind"] == "answers"}


def _parts(answers: Answers) -> list[float]:
    """Return the part of each prompt's answers that is right."""
    return [found / asked for found, asked in answers.values()]


def _each(answers: Answers) -> float:
    """Return how many answers a prompt has on average."""
    return average(asked for _, asked in answers.values())


def _counts(task: str, dense: Answers) -> bool:
    """Return whether dense attention can do a task, as far as it was asked."""
    parts = [found / asked for (name, _), (found, asked) in dense.items() if name == task]
    return not parts or average(parts) >= COUNTS


def _against_dense(ours: Answers, dense: Answers) -> dict[str, Any]:
    """Return how far answers are from dense attention's on the prompts that both were asked, as fields of a row."""
    mine, theirs = pair = _pairs(ours, dense)
    if not mine:
        return {}
    each = _each({key: of for key, of in ours.items() if key in dense})
    return {"difference": difference(*pair, each), "certainty": certainty(*pair), "dense_part": average(theirs)}


def _pairs(ours: Answers, dense: Answers) -> tuple[list[float], list[float]]:
    """Return what both find of the answers of each prompt that both were asked."""
    both = [key for key in ours if key in dense]
    return _parts({key: ours[key] for key in both}), _parts({key: dense[key] for key in both})


def _text(lines: Iterable[Record], dense: Iterable[Record]) -> dict[str, Any]:
    """Return what becomes of text that follows a prompt, beside dense attention's, as fields of a row."""
    mine, theirs = ({(x["seed"], x["following"]): x for x in some if x["kind"] == "after"} for some in (lines, dense))
    both = [key for key in mine if key in theirs]
    if not both:
        return {}
    found: dict[str, Any] = {"text": mean_difference(*([of[key]["nll"] for key in both] for of in (mine, theirs)))}
    for name in ("kl", "agreement"):
        parts = [mine[key][name] for key in both if name in mine[key]]  # older records have the loss alone
        found[name] = average(parts) if parts else None
    return found
