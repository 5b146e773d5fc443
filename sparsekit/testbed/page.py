"""Records as a page: for each length a table and the picture of accuracy over speed-up."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..plots import draw_front
from .front import Row, front, ranked
from .records import Record
from .statistics import Estimate

HOW = """Answers right: the mean over prompts of the part of a prompt's answers that is right, with its 95% interval
(Wilson). Difference: from dense attention on the same prompts, in points, paired, with its 95% interval (Newcombe); ~
where that holds 0: no difference is sure. Attention is the time over all layers of a prompt, deciding included, median
(20th to 80th percentile); speed-ups are of medians, over the fastest dense attention of the same run. Dense contenders
compute the same pairs: the model's own attention was asked for all of them. Pipelines ran however short the prompts
were (`break_even=0`). Front: no other is as good in one of answers and speed-up and better in the other; the numbers
are those in the picture."""


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
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(page(lines, pictures), encoding="utf-8")
    return unfinished.replace(path)


def page(records: Sequence[Record], pictures: Mapping[int, str]) -> str:
    """The Markdown; `pictures` are names of files, by length."""
    rows, headers = front(records), runs(records)
    first = headers[0]
    parts = [f"# Pipelines on {first['model']}\n", "Written by `sparsekit eval` from its records.\n", source(headers)]
    parts += [f"Text that facts are hidden in: {first['text']}.\n{HOW}\n"]
    for length in lengths(rows):
        mine = [row for row in rows if row.length == length]
        tokens = max(row.tokens for row in mine)
        parts.append(f"## {thousands(length)} bytes, {tokens:,.0f} tokens\n")
        parts += [f"![Answers right over speed-up]({pictures[length]})\n"] if length in pictures else []
        parts += [markdown(mine), *notes(mine)]
    return "\n".join(parts)


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
    """The table of the rows of one length."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    gpus = len({row.gpu for row in rows if row.gpu}) > 1
    head = ["pipeline", "right", *(task.replace("_", " ") for task in tasks), "difference", "attention ms", "speed-up"]
    head += ["first token ms", "kept", "density", *(["on"] if gpus else []), "front"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    steps = ranked(rows)
    for row in rows:
        cells = figures(row)
        each = [f"{100 * row.tasks[task].value:.1f}" if task in row.tasks else "" for task in tasks]
        attention = row.attention_ms
        cells["attention ms"] += f" ({attention.p20:,.1f} to {attention.p80:,.1f})" if attention else ""
        right, rest = cells.pop("right"), list(cells.values())
        name = f"`{row.pipeline}`".replace("|", "\\|")
        number = str(steps.index(row) + 1) if row in steps else ""
        lines.append(f"| {' | '.join([name, right, *each, *rest, *([row.gpu] if gpus else []), number])} |")
    return "\n".join(lines) + "\n"


def figures(row: Row) -> dict[str, str]:
    """The cells of a row, by column; of what was not measured, empty."""
    share = lambda part: "" if part is None else f"{part:.3f}"  # noqa: E731
    return {
        "right": percent(row.right),
        "difference": points(row.difference),
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
    return f"{'~ ' if difference.none else ''}{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table does not say: specs of other names, what broke, which layers ran dense all the same."""
    listed = [f"- `{row.pipeline}`: `{row.what}`" for row in rows if not row.dense and row.what != row.pipeline]
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
