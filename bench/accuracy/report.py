"""Writes the table of recipes and the page of the front: python -m bench.accuracy.report [--check]

Each file in bench/records/front/ holds one model's records, as bench.accuracy.run or `sparsekit eval --out` writes
them; the file of the same name in its folder confirmation/ holds those of other seeds and another text. The report
writes docs/front.md with its pictures, and the table between `<!-- recipes -->` and `<!-- /recipes -->` in README.md.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.accuracy.claims import CLAIMS, ENOUGH
from bench.accuracy.measured import Measured, read_all, runs_of_times
from bench.accuracy.pipelines import PAPERS, PUBLISHED
from bench.records import FOLDER, ROOT
from sparsekit import recipes
from sparsekit.commands.options import EMBEDDED
from sparsekit.evaluation.page import figures, runs, source, thousands
from sparsekit.evaluation.picture import draw_front
from sparsekit.evaluation.rows import COUNTS, Row, ranked
from sparsekit.evaluation.statistics import Estimate
from sparsekit.evaluation.tasks import TASKS as IN_WORDS
from sparsekit.files import write_whole
from sparsekit.testbed import TASKS

MARKED = re.compile(r"(<!-- recipes -->).*?(<!-- /recipes -->)", re.DOTALL)  # in README.md
HEAD = ["model", "length", "pipeline", "answers / dense", "difference", "worst task", "text, nats", "density"]
HEAD += ["speed-up", "on"]
NONE = "not measured"
ABOUT = f"""`{EMBEDDED}` is the model in the package: it has 7.4 M parameters, and its tokens are bytes. Answers: the
part of a prompt's answers that is right, mean over prompts; then the same under dense attention, and the number of
answers. Only tasks that dense attention answers right at least {COUNTS:.0%} of the time count. Difference: from dense
attention on the same prompts, in points, with its 95% interval; ~ marks an interval that includes 0, so no difference
is sure. Worst task: the task with the largest loss. Text: the loss on text that follows a prompt minus the loss after a
dense prefill, in nats per token, with its interval. Density: the part of dense attention's pairs that is computed.
Speed-up: of attention in all layers, over the fastest dense attention of the same run. The pipelines ran at every
length (`break_even=0`): dense attention is faster if the speed-up is below 1. As published, Token Sparse Attention
works in the half of the layers with the least drift."""
README = f"""{ABOUT}

[docs/front.md](docs/front.md) adds the lengths between, other seeds, another text, and the best of the other pipelines.
`make results` writes both from the records. [docs/recipes.md](docs/recipes.md) says how the recipes were chosen.
"""
PAGE = f"""# Accuracy against speed

`python -m bench.accuracy.report` writes this page from `bench/records/front/`, which has one file per model; change
nothing here. The full tables, every pipeline by task, take one command:
`sparsekit page bench/records/front/{EMBEDDED}.jsonl page.md`. `sparsekit eval MODEL` measures another model.

{ABOUT}
"""
CLAIMED = (
    f"These claims rest on at least {ENOUGH} answers at each model and length. The tests check them, and other seeds "
    "and another text do not contradict them:"
)
STEPS = "| | pipeline | spec | answers | difference | text, nats | density | speed-up |"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change")] = False,
    records: Annotated[Path, typer.Option(help="Folder with a file of records for each model")] = FOLDER / "front",
    readme: Annotated[Path, typer.Option(help="File with the markers")] = ROOT / "README.md",
    docs: Annotated[Path, typer.Option(help="Folder for front.md and its pictures")] = ROOT / "docs",
) -> None:
    """Update docs/front.md and the table of recipes in README.md from the records."""
    models, others = read_all(records), read_all(records / "confirmation")
    shown = "\n\n".join((table(models, ends_only=True, papers=PUBLISHED), *(part.strip() for part in claims()), README))
    texts = {docs / "front.md": page(models, others)}
    texts[readme] = MARKED.sub(lambda found: f"{found[1]}\n{shown}{found[2]}", readme.read_text())
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        if stale:
            typer.echo(
                f"{', '.join(path.name for path in stale)}: not up to date with the records; "
                "run python -m bench.accuracy.report"
            )
            raise typer.Exit(1)
        return
    for measured in models:
        for length in measured.lengths:
            if drawn(measured, length):
                title = f"{measured.model}, {measured.named(length)}, {measured.dense(length).gpu}"
                rings = {row.pipeline: name for name, row in recipe_rows(measured, length) if row}
                path = docs / picture(measured, length)
                draw_front(measured.at(length), path, title=title, marked=PUBLISHED | rings)
    for path in stale:
        write_whole(path, texts[path])


def page(models: Sequence[Measured], others: Sequence[Measured]) -> str:
    """Return docs/front.md as Markdown."""
    parts = [PAGE, "## Recipes\n", table(models), "", *specs(), *claims()]
    if others:
        late = (
            "Each model was asked these prompts once, after the recipes were chosen. `fast` got its parameters anew "
            "after the\nother two had been asked; then it was asked the same prompts.\n"
        )
        parts += ["## Other seeds, another text\n", late, table(others), ""]
    for measured in models:
        parts += [f"## {measured.model}\n", *tasks(measured)]
        for length in measured.lengths:
            parts += [f"### {measured.named(length)}\n"]
            if drawn(measured, length):
                parts += [f"![Answers right over speed-up]({picture(measured, length)})\n", steps(measured, length)]
    parts += ["## Sources of the figures\n"]
    parts += [f"{one.model}, times:\n\n{source(timed(one))}\n{machines(one)}" for one in models]
    parts += [f"{one.model}, other seeds and text:\n\n{machines(one)}" for one in others]
    return "\n".join(parts).rstrip() + "\n"


def table(models: Iterable[Measured], ends_only: bool = False, papers: Iterable[str] = tuple(PAPERS)) -> str:
    """Return the table of recipes and papers' settings by model and length, or only the shortest and longest length.

    A recipe that was not measured is listed as such; a paper's setting that was not measured is left out.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---|" + "---:|" * 6 + "---|"]
    for measured in models:
        lengths = measured.lengths
        for length in sorted({lengths[0], lengths[-1]}) if ends_only else lengths:
            settings = [(PAPERS[name], measured.pipeline(name, length)) for name in papers]
            named = [setting for setting in settings if setting[1]]
            named += [(f"`{name}`", row) for name, row in recipe_rows(measured, length)]
            lines += [line(measured, length, name, row) for name, row in named]
    return "\n".join(lines)


def line(measured: Measured, length: int, name: str, row: Row | None) -> str:
    """Return a line of the table."""
    cells = [measured.model, measured.named(length), name]
    if row is None:
        return f"| {' | '.join([*cells, NONE, *[''] * 6])} |"
    theirs, of = row.dense_tasks, figures(row)
    worst = min(theirs, key=lambda task: row.tasks[task].value - theirs[task])
    least = f"{worst.replace('_', ' ')} {share(row.tasks[worst])} / {theirs[worst]:.1%}"
    cells += [f"{share(row.right)} / {row.dense_part:.1%} of {measured.answers(row)}", of["difference"], least]
    cells += [text(row.text), of["density"], of["speed-up"], row.gpu]
    return f"| {' | '.join(cells)} |"


def recipe_rows(measured: Measured, length: int) -> list[tuple[str, Row | None]]:
    return [(name, measured.recipe(name, length)) for name in recipes.PIPELINES]


def specs() -> list[str]:
    """Return the list of recipes with their specs."""
    return ["\n".join(f"- `{name}`: `{make().to_spec()}`" for name, make in recipes.PIPELINES.items()) + "\n"]


def claims() -> list[str]:
    """Return the claims about recipes, which the tests check on every model in the tables."""
    return [f"{CLAIMED}\n", "\n".join(f"- `{name}`: {claim}" for name, claim in CLAIMS.items()) + "\n"]


def tasks(measured: Measured) -> list[str]:
    """Return the tasks behind the figures, and the tasks that are left out with the reason."""
    counted = sorted({task for row in measured.rows for task in row.tasks})
    least = min((row.right.n for row in measured.rows if row.right), default=0)
    parts = [f"{least} prompts or more for each pipeline and length. Tasks: {names(counted)}."]
    for length, lacking in measured.uncounted.items():
        if lacking:
            listed = ", ".join(f"`{task}` {share(part)}" for task, part in lacking.items())
            where = measured.named(length)
            parts.append(f"Left out at {where}, because dense attention has too few right: {listed}.")
    known = TASKS if measured.model == EMBEDDED else IN_WORDS
    if unasked := sorted(known.keys() - measured.tasks):
        parts.append(f"Tasks that were not measured: {names(unasked)}.")
    return [" ".join(parts) + "\n"]


def steps(measured: Measured, length: int) -> str:
    """Return the table of the points on the front, with their numbers in the picture."""
    lines = [STEPS, "|---:|---|---|" + "---:|" * 5]
    for number, row in enumerate(ranked(measured.at(length)), 1):
        of = figures(row)
        cells = [str(number), escaped(row.pipeline), f"`{escaped(row.spec)}`", of["right"], of["difference"]]
        cells.append(text(row.text))
        lines.append(f"| {' | '.join([*cells, of['density'], of['speed-up']])} |")
    return "\n".join(lines) + "\n"


def timed(measured: Measured) -> list[dict]:
    """Return the headers of the runs from which times are used."""
    used = runs_of_times(measured.lines)
    return [run for run in runs(measured.lines) if run["run"] in used]


def machines(measured: Measured) -> str:
    """Return the text, the dtype, and the chips and commits on which prompts and texts were read."""
    headers = {run["run"]: run for run in measured.headers}
    sentences = [f"Text: {measured.headers[0]['text']}, {measured.headers[0]['dtype']}."]
    for kind, name in {"answers": "Answers", "after": "Text after"}.items():
        used = (headers[line["run"]] for line in measured.lines if line["kind"] == kind)
        places = dict.fromkeys(f"{run['gpu']} ({(run['commit'] or 'no commit')[:7]})" for run in used)
        sentences += [f"{name}: {', '.join(places)}."] if places else []
    return " ".join(sentences) + "\n"


def share(part: Estimate | None) -> str:
    return "" if part is None else f"{part.value:.1%}"


def text(estimate: Estimate | None) -> str:
    """Return a difference in nats: "+0.0038 [+0.0008, +0.0074]", with "~ " if the interval includes 0."""
    if estimate is None:
        return ""
    if estimate.n < 2:
        return f"{estimate.value:+.4f} of one text"
    sure = "~ " if estimate.includes_zero else ""
    return f"{sure}{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def names(tasks: Iterable[str]) -> str:
    return ", ".join(f"`{task}`" for task in tasks)


def escaped(text: str) -> str:
    """Return a text for a cell of a table."""
    return text.replace("|", "\\|")


def drawn(measured: Measured, length: int) -> bool:
    """Return whether a row of that length has the figures of a picture."""
    return any(row.right and row.speed_up for row in measured.at(length))


def picture(measured: Measured, length: int) -> str:
    return f"front-{re.sub(r'[^a-z0-9.]+', '-', measured.model.lower())}-{thousands(length)}.png"


if __name__ == "__main__":
    typer.run(main)
