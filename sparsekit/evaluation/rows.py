"""Makes rows of records: accuracy and price of each pipeline at each length, and which rows are on the front."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean as average
from typing import Any, TypeAlias

from .price import Spread
from .records import Record
from .statistics import Estimate, certainty, difference, mean, mean_difference

Answers: TypeAlias = Mapping[tuple[str, int], tuple[int, int]]  # by task and seed: values found, values in question
OWN = "dense"  # the model's own attention, as records call it
COUNTS = 0.7  # a task counts in a claim if dense attention has at least this part of its answers right


@dataclass(frozen=True)
class Row:
    """One pipeline at one length. A figure is None if it was not measured, or not in a run with dense attention."""

    pipeline: str  # its name
    spec: str
    length: int  # of a prompt, in the unit of the records
    tokens: float  # of a prompt, mean
    dense: bool  # a dense contender; only the model's own attention is asked, as all compute the same pairs
    right: Estimate | None = None  # part of the answers that are right, in [0, 1]; all dense rows share dense's
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # the same by task, also for tasks that do not count
    difference: Estimate | None = None  # `right` minus dense attention's, on the prompts that both were asked
    certainty: float | None = None  # p-value of that difference
    dense_part: float | None = None  # part of those prompts' answers that dense attention has right
    dense_tasks: Mapping[str, float] = field(default_factory=dict)  # the same by task
    text: Estimate | None = None  # loss on the text that follows a prompt minus dense attention's, nats per token
    kl: float | None = None  # divergence over that text from dense attention's distribution, nats, mean over tokens
    agreement: float | None = None  # part of that text's tokens where the likeliest is dense attention's, in [0, 1]
    attention_ms: Spread | None = None  # per prompt, over all layers
    first_token_ms: Spread | None = None
    kept: float | None = None  # part of the queries, in [0, 1], mean over layers
    density: float | None = None  # part of the dense pairs, in [0, 1], mean over layers
    speed_up: float | None = None  # of attention, ratio of medians, over the fastest dense contender of the same run
    over: str = ""  # the name of that contender
    gpu: str = ""  # the GPU or CPU on which it was timed
    ran_dense: Mapping[str, str] = field(default_factory=dict)  # by layer, why it ran dense despite the pipeline
    failed: str = ""  # the reason if the pipeline broke
    uncounted: tuple[str, ...] = ()  # tasks that do not count; if no task counts, `right` is over all
    front: bool = False  # no other row is as good in one of standing and speed_up, and better in the other

    @property
    def standing(self) -> Estimate | None:
        """The difference from dense attention on the same prompts, or `right` if dense attention was not asked."""
        if self.dense and self.right:
            return Estimate(0.0, 0.0, 0.0, self.right.n)
        return self.difference or self.right

    @property
    def family(self) -> str:
        """The name of the first stage, "schedule" for a schedule, "dense" for dense attention."""
        if self.dense:
            return OWN
        return "schedule" if self.spec.startswith("{") else re.split(r"\W", self.spec, maxsplit=1)[0]


def front(records: Iterable[Record]) -> tuple[Row, ...]:
    """Return a row for each pipeline at each length: by length, dense first, then in the order of the records.

    Of several prices the newest counts. It gives a speed-up only if its run has a dense price of the same length.
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
    """Return the records without the answers to tasks of which dense attention has less than COUNTS right.

    Each length is judged by itself. On such tasks right answers are mostly luck, so a loss cannot be seen.
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
    """Return the rows that no other row beats: as good in one of `standing` and `speed_up`, better in the other.

    `right` alone would favour a row with easier prompts.
    """
    placed = [(row, row.speed_up, row.standing.value) for row in rows if row.standing and row.speed_up]
    return [
        row
        for row, fast, good in placed
        if not any(f >= fast and g >= good and (f > fast or g > good) for _, f, g in placed)
    ]


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Return the rows on the front, the slowest first; tables and pictures number them in this order."""
    return sorted((row for row in rows if row.front), key=lambda row: row.speed_up or 0.0)


def _dense(lines: Sequence[Record]) -> bool:
    return lines[0]["what"] == OWN


def _row(own: Sequence[Record], dense: Sequence[Record], lines: Sequence[Record], runs: Mapping[str, Record]) -> Row:
    """Return the row of one pipeline at one length.

    `own` are its records, `dense` those of the model's own attention at that length, `lines` all records.
    """
    theirs = _answers(dense)
    ours = theirs if _dense(own) else _answers(own)
    tasks = {task: {key: counts for key, counts in ours.items() if key[0] == task} for task, _ in ours}
    uncounted = tuple(task for task in tasks if not _counts(task, theirs))
    counted = {key: counts for key, counts in ours.items() if key[0] not in uncounted} or ours
    first = own[0]
    row = Row(
        first["pipeline"],
        first["what"],
        first["length"],
        average([line["tokens"] for line in own if line["kind"] != "after" and "tokens" in line] or [0]),
        _dense(own),
        right=mean(_parts(counted), _each(counted)) if counted else None,
        tasks={task: mean(_parts(of), _each(of)) for task, of in tasks.items()},
        failed=own[-1]["reason"] if own[-1]["kind"] == "failed" else "",
        uncounted=uncounted,
    )
    if not row.dense:
        pairs = {task: _pairs(of, theirs) for task, of in tasks.items()}
        row = replace(row, **_against_dense(counted, theirs), **_text(own, dense))
        row = replace(row, dense_tasks={task: average(pair[1]) for task, pair in pairs.items() if pair[1]})
    price = next((line for line in reversed(own) if line["kind"] == "price"), None)
    if price is None:
        return row
    rivals = [
        line
        for line in lines
        if line["kind"] == "price" and line["dense"] and (line["run"], line["length"]) == (price["run"], row.length)
    ]
    fastest = min(rivals, key=_median, default=None)
    mean_of = lambda layers: average(layers.values()) if layers else 1.0 if row.dense else None  # noqa: E731
    return replace(
        row,
        attention_ms=Spread(**price["attention_ms"]),
        first_token_ms=Spread(**price["first_token_ms"]),
        kept=mean_of(price["kept"]),
        density=mean_of(price["density"]),
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
    """Return the mean number of answers of a prompt."""
    return average(asked for _, asked in answers.values())


def _counts(task: str, dense: Answers) -> bool:
    """Return whether a task counts: dense attention has enough of its answers right, or was not asked."""
    parts = [found / asked for (name, _), (found, asked) in dense.items() if name == task]
    return not parts or average(parts) >= COUNTS


def _against_dense(ours: Answers, dense: Answers) -> dict[str, Any]:
    """Return the fields of a row that compare answers with dense attention's on the prompts that both were asked."""
    _, theirs = pair = _pairs(ours, dense)
    if not theirs:
        return {}
    each = _each({key: of for key, of in ours.items() if key in dense})
    return {"difference": difference(*pair, each), "certainty": certainty(*pair), "dense_part": average(theirs)}


def _pairs(ours: Answers, dense: Answers) -> tuple[list[float], list[float]]:
    """Return the parts that each has right, for every prompt that both were asked."""
    both = [key for key in ours if key in dense]
    return _parts({key: ours[key] for key in both}), _parts({key: dense[key] for key in both})


def _text(lines: Iterable[Record], dense: Iterable[Record]) -> dict[str, Any]:
    """Return the fields of a row about the text that follows a prompt, in comparison with dense attention."""
    ours, theirs = ({(x["seed"], x["following"]): x for x in some if x["kind"] == "after"} for some in (lines, dense))
    both = [key for key in ours if key in theirs]
    if not both:
        return {}
    fields: dict[str, Any] = {"text": mean_difference(*([of[key]["nll"] for key in both] for of in (ours, theirs)))}
    for name in ("kl", "agreement"):
        parts = [ours[key][name] for key in both if name in ours[key]]  # older records have the loss alone
        fields[name] = average(parts) if parts else None
    return fields
