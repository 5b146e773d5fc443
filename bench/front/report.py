"""The page of the front: python -m bench.front.report [--check]

Writes docs/front.md with its pictures from bench/records/front: the recipes' prices, accuracy over speed-up at each
length, the loss on plain text, and what became of every lead. The prices in sparsekit/recipes.py and the table between
`<!-- recipes -->` and `<!-- /recipes -->` in README.md are put in, too.
"""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from bench.front.pipelines import PAPERS
from bench.leads import report as leads
from bench.records import FOLDER, ROOT
from sparsekit import recipes
from sparsekit.plots import draw_front
from sparsekit.testbed import CLAIMED
from sparsekit.testbed.front import Row, front
from sparsekit.testbed.page import HOW, figures, lengths, markdown, percent, runs, source, thousands
from sparsekit.testbed.records import Record

RECORDS, LEADS = FOLDER / "front" / "nvidia-h200.jsonl", FOLDER / "front" / "leads-nvidia-h200.jsonl"
TUNING = FOLDER / "front" / "tuning-nvidia-h200.jsonl"
AT = 131072  # bytes, of the prices of recipes
DENSE = "dense"
PAPER = "tokens .005, zeros, low"
HEAD = """# Accuracy against speed

Written by `python -m bench.front.report` from `bench/records/front/`; change nothing here. The model is the embedded
one, 8 layers of 8 query and 2 key/value heads of dim 64, which finds what is asked at 128K bytes. Tasks that it does
not find 95% of under dense attention are left out. These remain:
{claimed}.
`conversation` asks 16 questions one after another at the end of the prompt: most stand before the last tokens, by
which the stages choose.

No parameter was chosen on these prompts' seeds but the recipes' tau, of the values in the tables. Their family was
asked other prompts, too, whose table stands further down; another text has not been asked yet.
"""
MARKED = re.compile(r"(<!-- recipes -->).*?(<!-- /recipes -->)", re.DOTALL)  # in README.md
HEADLINE = """The embedded model (7.4 M parameters, 8 layers) asked at 128K bytes on one {gpu}, bfloat16, {n} prompts of
{tasks} tasks; attention of all layers, over the fastest dense attention of the same run ({over}, {ms:.1f} ms):

"""
LOSS = """## Loss on plain text

Bits per byte of held-out text at 128K bytes, by position in it, the mean of {n} pieces: what a method costs where
nothing in particular is asked for. Every token's own prediction counts, in the middle of a prompt too, which nobody
reads there; the answers above do not depend on it.
"""
AGAIN = """## The recipes' family on other seeds

Other prompts at 128K bytes on the same text, seeds from {seed:,} on: {n} prompts with {answers} answers a pipeline.
Recipes: {recipes}.
"""
TRIED = """## Leads

What was tried to do better than the papers, at 32K bytes on an NVIDIA H200 (commit c1bb622, seeds from 1,000,000 on).
Plain is TokenCoverage on all layers with a sliding window of 128 for dropped queries. Work is the part of dense
attention's pairs that is computed. `found` are the testbed's own tasks, `questions` 24 questions answered inside the
prompt, `text` the bits per byte of the 512 bytes after a piece of text. Differences are paired, from the plain method
at equal strength or interpolated at equal work, with their 95% intervals; those that are sure are bold. What was tried
is in `bench/leads/`.
"""


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change")] = False,
    docs: Annotated[Path, typer.Option(help="Folder for front.md and its pictures")] = ROOT / "docs",
) -> None:
    """Bring docs/front.md and the recipes' prices up to date with the records."""
    lines = read_lines(RECORDS)
    rows = front(claimed(lines))
    readme = ROOT / "README.md"
    texts = {docs / "front.md": page(lines, rows), Path(inspect.getfile(recipes)): priced(rows)}
    texts[readme] = MARKED.sub(lambda found: f"{found[1]}\n{headline(rows)}{found[2]}", readme.read_text())
    if not check:
        for length in lengths(rows):
            draw_front([row for row in rows if row.length == length], docs / picture(length), title=title(length))
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        typer.echo(f"{', '.join(path.name for path in stale)}: not what the records say; run -m bench.front.report")
        raise typer.Exit(1)
    for path in stale:
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(texts[path])
        unfinished.replace(path)


def read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def claimed(lines: Iterable[Record]) -> list[Record]:
    """Without the tasks that no claim rests on, and without losses."""
    return [line for line in lines if line["kind"] != "loss" and line.get("task", CLAIMED[0]) in CLAIMED]


def page(lines: Sequence[Record], rows: Sequence[Row]) -> str:
    """Markdown."""
    parts = [HEAD.format(claimed=", ".join(f"`{name}`" for name in CLAIMED)), source(priced_runs(lines)), HOW, ""]
    parts += ["## Recipes\n", summary(rows)]
    for length in lengths(rows):
        mine = [row for row in rows if row.length == length]
        parts += [f"## {thousands(length)} bytes\n", f"![Answers right over speed-up]({picture(length)})\n"]
        parts += [f"The papers' settings: {', '.join(f'`{name}`' for name in PAPERS)}.\n", markdown(mine)]
    specs = {row.pipeline: row.what for row in rows if not row.dense}
    parts += ["## Specs\n", *(f"- `{name}`: `{what}`" for name, what in specs.items()), ""]
    parts.append(other_seeds(claimed(read_lines(TUNING)), rows))
    tables = leads.tables(read_lines(LEADS))
    parts += [
        losses(lines),
        TRIED,
        re.sub(r"^(# .*\n\n|#(?=# ))", lambda m: "##" if m[0] == "#" else "", tables, flags=re.M),
    ]
    return "\n".join(parts).rstrip() + "\n"


def priced_runs(lines: Sequence[Record]) -> list[Record]:
    """The runs that times are of: those that asked are of the same commit and machine."""
    timed = {line["run"] for line in lines if line["kind"] == "price"}
    return [line for line in runs(lines) if line["run"] in timed]


def summary(rows: Sequence[Row]) -> str:
    """A table of the recipes at each length."""
    lines = ["| recipe | spec | bytes | answers right | from dense | worst task | attention ms | speed-up | density |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name in (DENSE, "paper", *recipes.PIPELINES):
        for length in lengths(rows):
            row = found(rows, name, length)
            cells = figures(row)
            task, worst = min(((t, e.value) for t, e in row.tasks.items()), key=lambda pair: pair[1])
            spec = escaped(row.what)
            lines.append(
                f"| {name} | `{spec}` | {thousands(length)} | {cells['right']} | {cells['difference']} | "
                f"{task.replace('_', ' ')} {100 * worst:.1f}% | {cells['attention ms']} | {cells['speed-up']} | "
                f"{cells['density']} |"
            )
    return "\n".join(lines) + "\n"


def headline(rows: Sequence[Row]) -> str:
    """Of the README: the recipes at the length of their prices."""
    dense = found(rows, DENSE, AT)
    assert dense.right and dense.attention_ms
    names = {"dense": DENSE, "Token Sparse Attention, as published": "paper"}
    names |= {f"FlexPrefill, gamma {gamma}": f"FlexPrefill {gamma}" for gamma in (".95", ".99")}
    names |= {f"`{name}`": name for name in recipes.PIPELINES}
    lines = ["| | answers right | worst task | attention | speed-up | density |", "|---|---:|---:|---:|---:|---:|"]
    for shown, name in names.items():
        row = found(rows, name, AT)
        cells, worst = figures(row), min(row.tasks.items(), key=lambda pair: pair[1].value)
        task = f"{worst[0].replace('_', ' ')} {100 * worst[1].value:.0f}%"
        lines.append(
            f"| {shown} | {cells['right']} | {task} | {cells['attention ms']} ms | {cells['speed-up']} | "
            f"{cells['density']} |"
        )
    intro = HEADLINE.format(
        gpu=dense.gpu, n=dense.right.n, tasks=len(dense.tasks), over="FlashAttention-4", ms=dense.attention_ms.p50
    )
    note = "\nIntervals of 95%. [docs/front.md](docs/front.md) has every setting of the papers' methods beside them.\n"
    return intro + "\n".join(lines) + "\n" + note


def found(rows: Sequence[Row], name: str, length: int) -> Row:
    """The row of a recipe, of the fastest dense attention, or of a name among those that were asked."""
    mine = [row for row in rows if row.length == length]
    if name == DENSE:
        return max((row for row in mine if row.dense), key=lambda row: row.speed_up or 0)
    if name not in recipes.PIPELINES:
        return next(row for row in mine if row.pipeline == {"paper": PAPER}.get(name, name))
    return next(row for row in mine if row.what == recipes.PIPELINES[name]().to_spec())


def price(row: Row, dense: Row) -> str:
    """What a recipe's docstring says of it."""
    assert row.right and dense.right and row.attention_ms and dense.attention_ms
    worst = min(row.tasks.items(), key=lambda pair: pair[1].value)
    return (
        f"Price: {percent(row.right)} of the answers (dense {percent(dense.right)}, n = {row.right.n} prompts), worst "
        f"task {worst[0]} {100 * worst[1].value:.1f}% (dense {100 * dense.tasks[worst[0]].value:.1f}%); attention "
        f"{row.attention_ms.p50:.1f} ms over all layers, {row.speed_up:.1f} x faster than dense ({row.over}, "
        f"{dense.attention_ms.p50:.1f} ms)."
    )


def priced(rows: Sequence[Row]) -> str:
    """The source of sparsekit/recipes.py with the prices that the rows say."""
    text, dense = Path(inspect.getfile(recipes)).read_text(), found(rows, DENSE, AT)
    for name in ("paper", *recipes.PIPELINES):
        words = price(found(rows, name, AT), dense).split(" ")
        wrapped, line = [], "   "
        for word in words:
            if len(line) + len(word) + 1 > 116:
                wrapped.append(line)
                line = "   "
            line += f" {word}"
        block = "\n".join([*wrapped, line])
        start = text.index(f"def {name}(")
        head, rest = text[:start], text[start:]
        text = head + re.sub(r"    Price: .*?\n    \"\"\"", lambda _: f'{block}\n    """', rest, count=1, flags=re.S)  # noqa: B023
    return text


def other_seeds(lines: Sequence[Record], priced: Sequence[Row]) -> str:
    """The table of the pipelines that were asked other prompts; `priced` names the recipes among them."""
    asked = [line for line in lines if line["kind"] == "answers" and line["pipeline"] == DENSE]
    names = (f"`{name}` is `{found(priced, name, AT).pipeline}`" for name in recipes.PIPELINES)
    head = AGAIN.format(
        seed=min(line["seed"] for line in asked),
        n=len(asked),
        answers=sum(line["answers"] for line in asked),
        recipes=", ".join(names),
    )
    table = ["| pipeline | answers right | from dense | worst task |", "|---|---:|---:|---:|"]
    for row in front(lines):
        cells, (task, worst) = figures(row), min(row.tasks.items(), key=lambda pair: pair[1].value)
        table.append(
            f"| `{escaped(row.pipeline)}` | {cells['right']} | {cells['difference']} | "
            f"{task.replace('_', ' ')} {100 * worst.value:.1f}% |"
        )
    return head + "\n" + "\n".join(table) + "\n"


def losses(lines: Iterable[Record]) -> str:
    """The table of bits per byte by position."""
    by: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["kind"] == "loss" and line["length"] == AT:
            for end, bits in line["bits"]:
                by[line["pipeline"]][end].append(bits)
    ends = list(by[DENSE])
    head = ["pipeline", *(f"to {thousands(end)}" for end in ends)]
    table = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(ends)]
    for name, found_ in by.items():
        table.append(f"| `{escaped(name)}` | {' | '.join(f'{fmean(found_[end]):.3f}' for end in ends)} |")
    return LOSS.format(n=len(by[DENSE][ends[0]])) + "\n" + "\n".join(table) + "\n"


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


def picture(length: int) -> str:
    return f"front-{thousands(length)}.png"


def title(length: int) -> str:
    return f"embedded model, {thousands(length)} bytes, NVIDIA H200"


if __name__ == "__main__":
    typer.run(main)
