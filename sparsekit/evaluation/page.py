"""Records as a page: for each length a table and the picture of accuracy over speed-up."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..files import write_whole
from .picture import draw_front
from .records import Record
from .rows import COUNTS, OWN, Row, front, ranked
from .statistics import Estimate

HOW = f"""Right: the mean over prompts of the part of a prompt's answers that is right, with its 95% interval
(Wilson's, of as many answers as the prompts are worth). Tasks of which dense attention finds less than {COUNTS:.0%}
are shown and do not count; where none does, all are in the mean. Difference: from dense attention on the same
prompts, in points, paired, with its 95% interval (Newcombe's); ~ where that holds 0: no difference is sure. p: how
likely a difference like that is if there is none (exact, prompts swapped). Text: the loss of real text that follows a
prompt less that after a dense prefill, nats per token, with its 95% interval (Student's); KL: of its distributions
from dense attention's, in nats; agreement: where the likeliest token is the same. Attention is the time over all
layers of a prompt, deciding included, median (20th to 80th percentile); speed-ups are of medians, over the fastest
dense attention of the same run. Dense contenders compute the same pairs: the model's own attention was asked for all
of them. Pipelines ran however short the prompts were (`break_even=0`). Front: no other is as good in one of
difference and speed-up and better in the other; the numbers are those in the picture."""


def write_page(records: Iterable[Record], path: Path | str) -> Path:
    """The page of records as Markdown, with a PNG beside it for each length. Returns `path`, written whole.

    Raises ImportError without matplotlib, ValueError for records without a result.
    """
    path, lines = Path(path), list(records)
    rows = front(lines)
    if not rows:
        raise ValueError("records: got no results; allowed are records of sparsekit eval: measure something first")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for length in lengths(rows):
        mine = [row for row in rows if row.length == length]
        if any(row.right and row.speed_up for row in mine):
            picture = path.with_name(f"{path.stem}-{thousands(length)}.png")
            pictures[length] = draw_front(mine, picture, title=f"{runs(lines)[0]['model']}, {thousands(length)}").name
    return write_whole(path, page(lines, pictures))


def page(records: Sequence[Record], pictures: Mapping[int, str]) -> str:
    """The Markdown; `pictures` are names of files, by length."""
    rows, headers = front(records), runs(records)
    first = headers[0]
    parts = [f"# Pipelines on {first['model']}\n", "Written by `sparsekit eval` from its records.\n", source(headers)]
    parts += [f"Text that facts are hidden in: {first['text']}.\n{HOW}\n"]
    for length in lengths(rows):
        mine = [row for row in rows if row.length == length]
        parts.append(f"## {named(length, first, mine)}\n")
        parts += [f"![Answers right over speed-up]({pictures[length]})\n"] if length in pictures else []
        parts += [markdown(mine), by_task(mine), *notes(mine)]
    return "\n".join(parts)


def named(length: int, header: Record, rows: Iterable[Row]) -> str:
    """Return "2K tokens", or "2K bytes, 2,048 tokens"."""
    unit, tokens = header.get("unit", "bytes"), max(row.tokens for row in rows)
    return f"{thousands(length)} {unit}" + (f", {tokens:,.0f} tokens" if unit != "tokens" else "")


def runs(records: Iterable[Record]) -> list[Record]:
    """The headers of the runs that have results."""
    lines = list(records)
    used = {line["run"] for line in lines if line["kind"] != "run"}
    return [line for line in lines if line["kind"] == "run" and line["run"] in used]


def source(headers: Sequence[Record]) -> str:
    """A line for each run: where its results came from."""
    lines = []
    for run in headers:
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        commit = f", commit {run['commit'][:12]}{'' if run['clean'] else ' with changes'}" if run["commit"] else ""
        lines.append(f"- run {run['run']}, {run['date'][:10]}: {run['gpu']}, {run['dtype']}, {versions}{commit}")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table of the rows of one length."""
    gpus = len({row.gpu for row in rows if row.gpu}) > 1
    shown = [name for name in figures(rows[0]) if any(figures(row)[name] for row in rows)]
    lines, steps = [], ranked(rows)
    for row in rows:
        cells, attention = figures(row), row.attention_ms
        cells["attention ms"] += f" ({attention.p20:,.1f} to {attention.p80:,.1f})" if attention else ""
        number = str(steps.index(row) + 1) if row in steps else ""
        lines.append([_code(row.pipeline), *(cells[name] for name in shown), *([row.gpu] if gpus else []), number])
    return _table(["pipeline", *shown, *(["on"] if gpus else []), "front"], lines)


def by_task(rows: Sequence[Row]) -> str:
    """Return the table of what is right by task, of the rows of one length that were asked; none if none was."""
    asked = that_were_asked(rows)
    tasks = list(dict.fromkeys(task for row in asked for task in row.tasks))
    head = ["task", *(_code(row.pipeline) for row in asked), "counts"]
    return (
        _table(head, [[task.replace("_", " "), *parts(asked, task), counts(asked, task)] for task in tasks])
        if tasks
        else ""
    )


def that_were_asked(rows: Iterable[Row]) -> list[Row]:
    """Return those with answers of their own: of dense contenders only the model's attention was asked."""
    return [row for row in rows if row.tasks and (not row.dense or row.pipeline == OWN)]


def parts(rows: Iterable[Row], task: str) -> list[str]:
    """Return what each row has right of a task, in percent."""
    return [f"{100 * row.tasks[task].value:.1f}" if task in row.tasks else "" for row in rows]


def counts(rows: Iterable[Row], task: str) -> str:
    """Return whether a task counts."""
    return "no" if any(task in row.uncounted for row in rows) else "yes"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _code(name: str) -> str:
    return f"`{name}`".replace("|", "\\|")


def figures(row: Row) -> dict[str, str]:
    """Return the cells of a row, by column; of what was not measured, empty."""
    share = lambda part: "" if part is None else f"{part:.3f}"  # noqa: E731
    return {
        "right": percent(row.right),
        "difference": points(row.difference),
        "p": "" if row.certainty is None else f"{row.certainty:.3f}" if row.certainty >= 0.001 else "<0.001",
        "text, nats": nats(row.text),
        "KL": share(row.kl),
        "agreement": share(row.agreement),
        "attention ms": f"{row.attention_ms.p50:,.1f}" if row.attention_ms else "",
        "speed-up": f"{row.speed_up:.2f}x" if row.speed_up else "",
        "first token ms": f"{row.first_token_ms.p50:,.1f}" if row.first_token_ms else "",
        "kept": share(row.kept),
        "density": share(row.density),
    }


def percent(part: Estimate | None) -> str:
    """ "97.5% [92.1, 99.2]"."""
    return "" if part is None else f"{100 * part.value:.1f}% [{100 * part.low:.1f}, {100 * part.high:.1f}]"


def points(difference: Estimate | None) -> str:
    """ "-4.0 [-7.5, -0.5]", or "~ -0.2 [-1.2, +0.8]" where no difference is sure."""
    if difference is None:
        return ""
    value, low, high = (100 * part for part in (difference.value, difference.low, difference.high))
    return f"{'~ ' if difference.includes_zero else ''}{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def nats(difference: Estimate | None) -> str:
    """ "+0.012 [+0.004, +0.020]", or "~ +0.001 [-0.003, +0.005]" where no difference is sure; of one text no ends."""
    if difference is None:
        return ""
    if difference.n == 1:
        return f"~ {difference.value:+.3f}"
    value, low, high = difference.value, difference.low, difference.high
    return f"{'~ ' if difference.includes_zero else ''}{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table does not say: specs of other names, what broke, which layers ran dense all the same."""
    listed = [f"- `{row.pipeline}`: `{row.spec}`" for row in rows if not row.dense and row.spec != row.pipeline]
    listed += [f"- `{row.pipeline}` broke: {row.failed}" for row in rows if row.failed]
    for row in rows:
        for reason in dict.fromkeys(row.ran_dense.values()):
            where = ", ".join(layer for layer, why in row.ran_dense.items() if why == reason)
            listed.append(f"- `{row.pipeline}` ran dense in layers {where}: {reason}")
    return ["\n".join(listed) + "\n"] if listed else []


def lengths(rows: Iterable[Row]) -> list[int]:
    """Of the rows, ascending."""
    return sorted({row.length for row in rows})


def thousands(length: int) -> str:
    """131072 -> "128K"."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)
