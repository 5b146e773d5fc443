"""The page of the front: python -m bench.front.report [--check]

Writes docs/front.md with its pictures from bench/records/front: the recipes' prices, accuracy over speed-up at each
length, the loss on plain text, other seeds and another text, and what became of every lead. The prices in
sparsekit/recipes.py and the table between `<!-- recipes -->` and `<!-- /recipes -->` in README.md are put in, too.
"""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Annotated

import typer

from bench.front.pipelines import PAPERS, PIPELINES
from bench.leads import report as leads
from bench.records import FOLDER, ROOT
from sparsekit import recipes
from sparsekit.plots import draw_front
from sparsekit.testbed import CLAIMED
from sparsekit.testbed.front import Row, front
from sparsekit.testbed.loss import AFTER
from sparsekit.testbed.page import HOW, figures, lengths, markdown, percent, runs, source, thousands
from sparsekit.testbed.records import Record
from sparsekit.testbed.statistics import Estimate, bootstrap_difference

RECORDS, TUNING, CONFIRMATION, LEFT_OUT, LEADS = (
    FOLDER / "front" / f"{name}.jsonl" for name in ("evaluation", "tuning", "confirmation", "left_out", "leads")
)
AT = 131072  # bytes, of the prices of recipes
DENSE = "dense"
PAPER = next(iter(PAPERS))  # what the recipe `paper` is
FOR_ALL = " for all"  # in the names of pipelines whose kept queries see their window too
PLACES = {name: at for at, name in enumerate(PIPELINES)}  # in tables; dense comes first
LOSSES = "loss", "after"  # kinds of records that are no answers
HEAD = """# Accuracy against speed

Written by `python -m bench.front.report` from `bench/records/front/`; change nothing here. The model is the embedded
one, 8 layers of 8 query and 2 key/value heads of dim 64, which finds what is asked at 128K bytes. Tasks that it does
not find 95% of under dense attention are left out, and stand further down. These remain:
{claimed}.
`conversation` asks 16 questions one after another at the end of the prompt: most stand before the last tokens, by
which the stages choose.

The recipes were chosen on the model's first weights, which knew the first four tasks and what is made of them. Then its
training was extended to the others, and no recipe was changed since. Tables of the first weights say so; all others are
of the weights of now. Every pipeline was asked {n} prompts or more with {answers} answers at each length. Times were
taken with nothing else running. At 32K dense attention takes 2 ms a layer, and little is much faster: without
`break_even=0` pipelines run dense there.

`text after` is what a prefill does to text that nobody asks for: bits per byte of the {after} bytes that follow a
prompt of plain text, read densely over the cache that the prefill left, less those after a dense prefill, paired,
the mean of {windows} prompts with its 95% interval (bootstrap). A byte takes {bits:.2f} bits at {at} after a dense one.
"""
MARKED = re.compile(r"(<!-- recipes -->).*?(<!-- /recipes -->)", re.DOTALL)  # in README.md
HEADLINE = """The embedded model (7.4 M parameters, 8 layers) asked at 128K bytes, bfloat16, {n} prompts of {tasks}
tasks; attention of all layers on one {gpu}, over the fastest dense attention of the same run ({over},
{ms:.1f} ms):

"""
NOTE = """
Intervals of 95%. Elsewhere: answers right at other seeds, in another text. Text after: the loss, per byte, of plain
text that follows a prompt, less that after a dense prefill.
[docs/front.md](docs/front.md) has every setting of the papers' methods beside them, at 32K and 64K, too; `make results`
writes it from the records.
"""
LOSS = """## Loss on plain text

Bits per byte of held-out text at 128K bytes, by position in it, the mean of {n} pieces: what a method costs where
nothing in particular is asked for. Every token's own prediction counts, in the middle of a prompt too, which nobody
reads there; the answers above do not depend on it, and what it does to the text that follows is `text after`.
"""
AGAIN = """## Tuning

What the recipes were chosen by, on the first weights: other prompts on the same text, seeds from {seed:,} on; dense was
asked {n} prompts with {answers} answers at a length, others some or all of them. Of wide windows mostly the text after
was wanted: those with an interval from 80.6, 89.3 or 92.6% on were asked 16, 32 or 48 single keys alone.
"""
CONFIRMED = """## Confirmation

Seeds from {seed:,} on, on another text, the source of hypothesis, pytest, rich and pygments; {n} prompts with {answers}
answers a pipeline and length, asked once. A task with one answer a prompt has {each} of them: one that is missed makes
{missed:.1f}%.
"""
UNCLAIMED = """## Tasks left out

What the embedded model finds under dense attention in the tasks that no claim rests on, with 95% intervals, {n} prompts
a task and length. It was trained for them, too, and learned them in part: the longer the prompt, the less it finds.
"""
KEPT = """Of those that it finds in part, what pipelines find of the same prompts. No claim rests on this.
"""
BESIDE = """## Kept queries and their neighbours

On the first weights. A kept query that sees kept keys alone stands far from most of them. With a window `for all`
queries it sees its nearest keys as well, merged by log-sum-exp. Text after the tuning prompts, each pipeline with that
less the same without, on the same texts; negative is better.
"""
TRIED = """## Leads

What was tried to do better than the papers, at 32K bytes on an NVIDIA H200 (commit c1bb622, seeds from 1,000,000 on),
on the first weights.
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
    rows, after = ordered(front(claimed(lines))), text_after(lines)
    readme = ROOT / "README.md"
    others = front(claimed(read_lines(CONFIRMATION)))
    texts = {docs / "front.md": page(lines, rows), Path(inspect.getfile(recipes)): priced(rows, after, others)}
    shown = headline(rows, after, others)
    texts[readme] = MARKED.sub(lambda found: f"{found[1]}\n{shown}{found[2]}", readme.read_text())
    if not check:
        for length in lengths(rows):
            mine = [row for row in rows if row.length == length]
            title = f"embedded model, {thousands(length)} bytes, {mine[0].gpu}"
            named = {found(mine, name, length).pipeline: name for name in recipes.PIPELINES}
            draw_front(mine, docs / picture(length), title=title, marked=PAPERS | named)
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


def without_losses(lines: Iterable[Record]) -> list[Record]:
    return [line for line in lines if line["kind"] not in LOSSES]


def claimed(lines: Iterable[Record]) -> list[Record]:
    """Without the tasks that no claim rests on, and without losses."""
    return [line for line in without_losses(lines) if line.get("task", CLAIMED[0]) in CLAIMED]


def answers(lines: Iterable[Record]) -> dict[tuple[str, int], int]:
    """By pipeline and length: how many answers were asked for."""
    found: dict[tuple[str, int], int] = defaultdict(int)
    for line in lines:
        if line["kind"] == "answers":
            found[line["pipeline"], line["length"]] += line["answers"]
    return found


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By length, dense first, then as the pipelines are listed."""
    return sorted(rows, key=lambda row: (row.length, PLACES.get(row.pipeline, -1)))


def text_after(lines: Iterable[Record]) -> dict[tuple[str, int], Estimate]:
    """By pipeline and length: the loss of the text after a prompt, in bits per byte, less that of dense attention."""
    by: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == "after":
            by[line["pipeline"], line["length"]][line["seed"]] = line["bits"]
    found = {}
    for (name, length), ours in by.items():
        theirs = by[DENSE, length]
        both = sorted(ours.keys() & theirs.keys())
        found[name, length] = bootstrap_difference([ours[x] for x in both], [theirs[x] for x in both])
    return found


def bits(estimate: Estimate | None) -> str:
    """ "+0.0038 [+0.0008, +0.0074]", or "~ +0.0010 [-0.0007, +0.0028]" where no difference is sure."""
    if estimate is None:
        return ""
    sure = "~ " if estimate.none else ""
    return f"{sure}{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def page(lines: Sequence[Record], rows: Sequence[Row]) -> str:
    """Markdown."""
    dense = [line["bits"] for line in lines if line["kind"] == "after" and at_price(line, DENSE)]
    names = fill(", ".join(f"`{name}`" for name in CLAIMED), 120)
    n = min(row.right.n for row in rows if row.right)
    of = dict(after=AFTER, windows=len(dense), bits=fmean(dense), at=thousands(AT))
    head = HEAD.format(claimed=names, n=n, answers=min(answers(claimed(lines)).values()), **of)
    after = text_after(lines)
    parts = [
        head,
        "Times:\n",
        source([run for run in runs(lines) if run["run"] in current(lines)]),
        machines(lines),
        HOW,
        "",
        "## Recipes\n",
        summary(rows, after),
    ]
    published = ", ".join(f"`{name}`" for name in PAPERS)
    for length in lengths(rows):
        mine = [row for row in rows if row.length == length]
        parts += [f"## {thousands(length)} bytes\n", f"![Answers right over speed-up]({picture(length)})\n"]
        parts += [f"Ringed are the recipes and the papers' settings: {published}.\n", markdown(mine)]
    specs = {row.pipeline: row.what for row in rows if not row.dense}
    parts += ["## Specs\n", *(f"- `{name}`: `{what}`" for name, what in specs.items()), ""]
    tuning = read_lines(TUNING)
    parts += [again(AGAIN, tuning, rows), again(CONFIRMED, read_lines(CONFIRMATION), rows), beside(tuning)]
    parts += [left_out(read_lines(LEFT_OUT))]
    tables = leads.tables(read_lines(LEADS))
    parts += [
        losses(lines),
        TRIED,
        re.sub(r"^(# .*\n\n|#(?=# ))", lambda m: "##" if m[0] == "#" else "", tables, flags=re.M),
    ]
    return "\n".join(parts).rstrip() + "\n"


def current(lines: Iterable[Record]) -> set[str]:
    """The runs that the rows' times are of: of several prices the newest counts."""
    return set({(line["pipeline"], line["length"]): line["run"] for line in lines if line["kind"] == "price"}.values())


def at_price(line: Record, name: str) -> bool:
    """Whether it is of that pipeline at the length of the recipes' prices."""
    return line["pipeline"] == name and line["length"] == AT


def machines(lines: Sequence[Record]) -> str:
    """Which GPUs, at which commits, what was asked and read is of."""
    headers = {line["run"]: line for line in lines if line["kind"] == "run"}
    names = {"answers": "Answers", "loss": "Loss by position", "after": "Text after"}
    found = []
    for kind, name in names.items():
        used = (headers[line["run"]] for line in lines if line["kind"] == kind)
        places = dict.fromkeys(f"{run['gpu']} ({run['commit'][:7]})" for run in used)
        found += [f"{name}: {', '.join(places)}."] if places else []
    return " ".join(found) + "\n"


def summary(rows: Sequence[Row], after: Mapping[tuple[str, int], Estimate]) -> str:
    """A table of the recipes at each length."""
    head = ["recipe", "spec", "bytes", "answers right", "from dense", "worst task", "text after, bits"]
    head += ["attention ms", "speed-up", "density", "on"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for name in (DENSE, "paper", *recipes.PIPELINES):
        for length in lengths(rows):
            row = found(rows, name, length)
            cells = figures(row)
            task, worst = min(((t, e.value) for t, e in row.tasks.items()), key=lambda pair: pair[1])
            spec, text = escaped(row.what), "" if row.dense else bits(after[row.pipeline, length])
            asked = f"{task.replace('_', ' ')} {100 * worst:.1f}%"
            lines.append(
                f"| {name} | `{spec}` | {thousands(length)} | {cells['right']} | {cells['difference']} | "
                f"{asked} | {text} | {cells['attention ms']} | {cells['speed-up']} | {cells['density']} | {row.gpu} |"
            )
    return "\n".join(lines) + "\n"


def headline(rows: Sequence[Row], after: Mapping[tuple[str, int], Estimate], others: Sequence[Row]) -> str:
    """Of the README: the recipes at the length of their prices; `others` are of other seeds and another text."""
    dense = found(rows, DENSE, AT)
    assert dense.right and dense.attention_ms
    names = {"dense": DENSE, "Token Sparse Attention, as published": "paper"}
    names |= {f"FlexPrefill, gamma {gamma}": f"FlexPrefill {gamma}" for gamma in (".95", ".99", ".995")}
    names |= {f"`{name}`": name for name in recipes.PIPELINES}
    head = ["", "answers right", "worst task", "elsewhere", "text after, bits", "attention", "speed-up", "density"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for shown, name in names.items():
        row = found(rows, name, AT)
        cells, worst = figures(row), min(row.tasks.items(), key=lambda pair: pair[1].value)
        task = f"{worst[0].replace('_', ' ')} {100 * worst[1].value:.0f}%"
        once, text = confirmed(row, others), "" if row.dense else bits(after[row.pipeline, AT])
        elsewhere = percent(once.right) if once and once.right else ""
        lines.append(
            f"| {shown} | {cells['right']} | {task} | {elsewhere} | {text} | "
            f"{cells['attention ms']} ms | {cells['speed-up']} | {cells['density']} |"
        )
    intro = HEADLINE.format(
        gpu=dense.gpu, n=dense.right.n, tasks=len(dense.tasks), over="FlashAttention-4", ms=dense.attention_ms.p50
    )
    return intro + "\n".join(lines) + "\n" + NOTE


def found(rows: Sequence[Row], name: str, length: int) -> Row:
    """The row of a recipe, of the fastest dense attention, or of a name among those that were asked."""
    mine = [row for row in rows if row.length == length]
    if name == DENSE:
        return max((row for row in mine if row.dense), key=lambda row: row.speed_up or 0)
    if name not in recipes.PIPELINES:
        return next(row for row in mine if row.pipeline == {"paper": PAPER}.get(name, name))
    return next(row for row in mine if row.what == recipes.PIPELINES[name]().to_spec())


def confirmed(row: Row, others: Iterable[Row]) -> Row | None:
    """The same pipeline at the same length among those of other seeds and another text."""
    name = DENSE if row.dense else row.pipeline
    return next((other for other in others if (other.pipeline, other.length) == (name, row.length)), None)


def price(row: Row, dense: Row, after: Estimate, once: Row | None) -> str:
    """What a recipe's docstring says of it; `after` is of the loss of text that follows a prompt.

    `once` is of other seeds and another text.
    """
    assert row.right and dense.right and row.attention_ms and dense.attention_ms
    worst = min(row.tasks.items(), key=lambda pair: pair[1].value)
    elsewhere = ""
    if once and once.right:
        task, least = min(once.tasks.items(), key=lambda pair: pair[1].value)
        elsewhere = f" Other seeds, another text: {percent(once.right)}, worst task {task} {100 * least.value:.1f}%."
    return (
        f"Price: {percent(row.right)} of the answers (dense {percent(dense.right)}, n = {row.right.n} prompts), worst "
        f"task {worst[0]} {100 * worst[1].value:.1f}% (dense {100 * dense.tasks[worst[0]].value:.1f}%); text that "
        f"follows {bits(after)} bits per byte; attention "
        f"{row.attention_ms.p50:.1f} ms over all layers, {row.speed_up:.1f} x faster than dense ({row.over}, "
        f"{dense.attention_ms.p50:.1f} ms).{elsewhere}"
    )


def priced(rows: Sequence[Row], after: Mapping[tuple[str, int], Estimate], others: Sequence[Row]) -> str:
    """The source of sparsekit/recipes.py with the prices that the rows say, and their confirmation by `others`."""
    text, dense = Path(inspect.getfile(recipes)).read_text(), found(rows, DENSE, AT)
    for name in ("paper", *recipes.PIPELINES):
        row = found(rows, name, AT)
        words = price(row, dense, after[row.pipeline, AT], confirmed(row, others)).split(" ")
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


def again(text: str, lines: Sequence[Record], priced: Sequence[Row]) -> str:
    """The table of the pipelines that were asked other prompts; `priced` names the recipes among them."""
    asked = [line for line in lines if line["kind"] == "answers" and at_price(line, DENSE)]
    named = {found(priced, name, AT).pipeline: f" ({name})" for name in recipes.PIPELINES}
    after = text_after(lines)
    table = ["| pipeline | bytes | answers right | from dense | worst task | text after, bits |", "|---|" + "---:|" * 5]
    for row in ordered(front(claimed(lines))):
        cells, (task, worst) = figures(row), min(row.tasks.items(), key=lambda pair: pair[1].value)
        table.append(
            f"| `{escaped(row.pipeline)}`{named.get(row.pipeline, '')} | {thousands(row.length)} | {cells['right']} | "
            f"{cells['difference']} | {task.replace('_', ' ')} {100 * worst.value:.1f}% | "
            f"{'' if row.dense else bits(after[row.pipeline, row.length])} |"
        )
    each = len(asked) // len({line["task"] for line in asked})
    head = text.format(
        seed=min(line["seed"] for line in asked),
        n=len(asked),
        answers=answers(asked)[DENSE, AT],
        each=each,
        missed=100 - 100 / each,
    )
    return f"{head}\n{machines(lines)}\n" + "\n".join(table) + "\n"


def beside(lines: Iterable[Record]) -> str:
    """The table of pipelines whose kept queries see their window too, against those whose do not."""
    by: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == "after":
            by[line["pipeline"], line["length"]][line["seed"]] = line["bits"]
    table = ["| pipeline | bytes | texts | without | for all | difference |", "|---|" + "---:|" * 5]
    for name, length in sorted((key for key in by if FOR_ALL in key[0]), key=lambda key: (key[1], key[0])):
        texts = [by[key, length] for key in (name, name.replace(FOR_ALL, ""), DENSE) if (key, length) in by]
        seeds = sorted(set.intersection(*(set(one) for one in texts)))
        if len(texts) < 3 or not seeds:
            continue
        with_, without, dense = ([one[seed] for seed in seeds] for one in texts)
        cells = [bits(bootstrap_difference(*two)) for two in ((without, dense), (with_, dense), (with_, without))]
        table.append(f"| `{name.replace(FOR_ALL, '')}` | {thousands(length)} | {len(seeds)} | {' | '.join(cells)} |")
    return BESIDE + "\n" + "\n".join(table) + "\n"


def left_out(lines: Sequence[Record]) -> str:
    """The tables of what dense attention finds of the tasks that no claim rests on, and pipelines of some of them."""
    lines = without_losses(lines)
    rows = front(lines)
    dense = [row for row in rows if row.dense]
    tasks = next((row.tasks for row in rows if not row.dense), {})
    table = [f"| task | {' | '.join(thousands(row.length) for row in dense)} |", "|---|" + "---:|" * len(dense)]
    for task in dense[0].tasks:
        table.append(f"| {task.replace('_', ' ')} | {' | '.join(percent(row.tasks[task]) for row in dense)} |")
    head = ["pipeline", "bytes", *(task.replace("_", " ") for task in tasks), "from dense"]
    beside = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        if row.length in {other.length for other in rows if not other.dense}:
            shares = (f"{100 * row.tasks[task].value:.1f}%" for task in tasks)
            name, difference = escaped(row.pipeline), figures(row)["difference"]
            beside.append(f"| `{name}` | {thousands(row.length)} | {' | '.join(shares)} | {difference} |")
    n = min(part.n for row in dense for part in row.tasks.values())
    parts = [UNCLAIMED.format(n=n), machines(lines), "\n".join(table) + "\n"]
    if tasks:
        parts += [KEPT, "\n".join(beside) + "\n"]
    return "\n".join(parts)


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
    for name in sorted(by, key=lambda name: PLACES.get(name, -1)):
        table.append(f"| `{escaped(name)}` | {' | '.join(f'{fmean(by[name][end]):.3f}' for end in ends)} |")
    return LOSS.format(n=len(by[DENSE][ends[0]])) + "\n" + "\n".join(table) + "\n"


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


def picture(length: int) -> str:
    return f"front-{thousands(length)}.png"


if __name__ == "__main__":
    typer.run(main)
