"""Writes records as a page: for each length a table and a picture of accuracy over speed-up."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..files import write_whole
from .picture import draw_front
from .records import Record
from .rows import COUNTS, OWN, Row, front, ranked
from .statistics import Estimate

HOW = f"""Right: the part of a prompt's answers that is right, mean over prompts, with its 95% interval (Wilson's, for
the number of independent answers that the prompts are worth). Tasks that dense attention answers right less than
{COUNTS:.0%} of the time are shown but do not count; if no task counts, the mean is over all of them. Difference: from
dense attention on the same prompts, in points, paired, with its 95% interval (Newcombe's); ~ marks an interval that
includes 0, so no difference is sure. p: how likely chance alone gives a difference this large (exact permutation
test). Text: the loss on real text that follows a prompt minus the loss after a dense prefill, nats per token, with its
95% interval (Student's). KL: the divergence from dense attention's distribution over that text, in nats. Agreement:
the part of its tokens where the likeliest is dense attention's. Attention: the time over all layers of a prompt,
including the stages, median (20th to 80th percentile). Speed-up: the ratio of medians, over the fastest dense
attention of the same run. Dense contenders compute the same pairs, so only the model's own attention was asked.
Stages always ran, however short the prompt (`break_even=0`). Front: no other row is as good in one of difference and
speed-up and better in the other; the numbers are those in the picture."""


def write_page(records: Iterable[Record], path: Path | str) -> Path:
    """Write the page of records as Markdown, with a PNG beside it for each length. Returns `path`.

    The files are written whole or not at all. Raises ImportError without matplotlib, ValueError for records without a
    result.
    """
    path, lines = Path(path), list(records)
    rows = front(lines)
    if not rows:
        raise ValueError("records: got no results; allowed are records of sparsekit eval: measure something first")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for length in lengths(rows):
        same = [row for row in rows if row.length == length]
        if any(row.right and row.speed_up for row in same):
            picture = path.with_name(f"{path.stem}-{thousands(length)}.png")
            pictures[length] = draw_front(same, picture, title=f"{runs(lines)[0]['model']}, {thousands(length)}").name
    return write_whole(path, page(lines, pictures))


def page(records: Sequence[Record], pictures: Mapping[int, str]) -> str:
    """Return the page as Markdown; `pictures` maps lengths to file names."""
    rows, headers = front(records), runs(records)
    first = headers[0]
    parts = [f"# Pipelines on {first['model']}\n", "Written by `sparsekit eval` from its records.\n", source(headers)]
    parts += [f"Text that facts are hidden in: {first['text']}.\n{HOW}\n"]
    for length in lengths(rows):
        same = [row for row in rows if row.length == length]
        parts.append(f"## {named(length, first, same)}\n")
        parts += [f"![Answers right over speed-up]({pictures[length]})\n"] if length in pictures else []
        parts += [markdown(same), by_task(same), *notes(same)]
    return "\n".join(parts)


def named(length: int, header: Record, rows: Iterable[Row]) -> str:
    """Return a heading such as "2K tokens" or "2K bytes, 2,048 tokens"."""
    unit, tokens = header.get("unit", "bytes"), max(row.tokens for row in rows)
    return f"{thousands(length)} {unit}" + (f", {tokens:,.0f} tokens" if unit != "tokens" else "")


def runs(records: Iterable[Record]) -> list[Record]:
    """Return the headers of the runs that have results."""
    lines = list(records)
    used = {line["run"] for line in lines if line["kind"] != "run"}
    return [line for line in lines if line["kind"] == "run" and line["run"] in used]


def source(headers: Sequence[Record]) -> str:
    """Return one line for each run: date, chip, dtype, versions and commit."""
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
    """Return the table of right answers by task, for the rows of one length that have answers; "" if no row has."""
    answered = that_were_asked(rows)
    tasks = list(dict.fromkeys(task for row in answered for task in row.tasks))
    head = ["task", *(_code(row.pipeline) for row in answered), "counts"]
    return (
        _table(head, [[task.replace("_", " "), *parts(answered, task), counts(answered, task)] for task in tasks])
        if tasks
        else ""
    )


def that_were_asked(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with answers of their own; the only dense one is the model's own attention."""
    return [row for row in rows if row.tasks and (not row.dense or row.pipeline == OWN)]


def parts(rows: Iterable[Row], task: str) -> list[str]:
    """Return the part of a task's answers that each row has right, in percent."""
    return [f"{100 * row.tasks[task].value:.1f}" if task in row.tasks else "" for row in rows]


def counts(rows: Iterable[Row], task: str) -> str:
    """Return "yes" if a task counts, else "no"."""
    return "no" if any(task in row.uncounted for row in rows) else "yes"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _code(name: str) -> str:
    return f"`{name}`".replace("|", "\\|")


def figures(row: Row) -> dict[str, str]:
    """Return the cells of a row by column; a figure that was not measured is ""."""
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
    """Return a part with its interval: "97.5% [92.1, 99.2]"."""
    return "" if part is None else f"{100 * part.value:.1f}% [{100 * part.low:.1f}, {100 * part.high:.1f}]"


def points(difference: Estimate | None) -> str:
    """Return a difference in points: "-4.0 [-7.5, -0.5]", or "~ -0.2 [-1.2, +0.8]" if its interval includes 0."""
    if difference is None:
        return ""
    value, low, high = (100 * part for part in (difference.value, difference.low, difference.high))
    return f"{'~ ' if difference.includes_zero else ''}{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def nats(difference: Estimate | None) -> str:
    """Return a difference in nats: "+0.012 [+0.004, +0.020]", with "~ " if its interval includes 0.

    The difference of a single text is given without an interval.
    """
    if difference is None:
        return ""
    if difference.n == 1:
        return f"~ {difference.value:+.3f}"
    value, low, high = difference.value, difference.low, difference.high
    return f"{'~ ' if difference.includes_zero else ''}{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def notes(rows: Sequence[Row]) -> list[str]:
    """Return notes to the table: specs behind names, pipelines that broke, layers that ran dense despite a pipeline."""
    listed = [f"- `{row.pipeline}`: `{row.spec}`" for row in rows if not row.dense and row.spec != row.pipeline]
    listed += [f"- `{row.pipeline}` broke: {row.failed}" for row in rows if row.failed]
    for row in rows:
        for reason in dict.fromkeys(row.ran_dense.values()):
            where = ", ".join(layer for layer, why in row.ran_dense.items() if why == reason)
            listed.append(f"- `{row.pipeline}` ran dense in layers {where}: {reason}")
    return ["\n".join(listed) + "\n"] if listed else []


def lengths(rows: Iterable[Row]) -> list[int]:
    """Return the lengths of the rows, ascending."""
    return sorted({row.length for row in rows})


def thousands(length: int) -> str:
    """Return a length in short: "128K" for 131072."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)
