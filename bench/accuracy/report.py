"""The table of recipes, and the page of the front: python -m bench.accuracy.report [--check]

Each file in bench/records/front/ is of one model, as bench.accuracy.run or `sparsekit eval --out` writes it; the file
of the same name in its folder confirmation/ is of other seeds and another text. Written are docs/front.md with its
pictures, and the table between `<!-- recipes -->` and `<!-- /recipes -->` in README.md.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.accuracy.claims import CLAIMS, ENOUGH, TARGETS
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
ABOUT = f"""`{EMBEDDED}` is the model in the package: 7.4 M parameters, a token a byte. Answers: the part found, mean
over prompts, of the tasks of which dense attention finds at least {COUNTS:.0%}, beside what dense attention finds of
the same, and how many there are. Difference: of the two, in points, with its 95% interval; ~ where no difference is
sure. Worst task: the one with the largest difference. Text: the loss of text that follows a prompt, in nats a token,
less that after a dense prefill, likewise. Density: the part of dense attention's pairs that is computed. Speed-up: of
attention in all layers, over the fastest dense attention of the same run. Pipelines ran at every length
(`break_even=0`): where the speed-up is below 1, dense attention is faster. As published, Token Sparse Attention works
in the half of the layers with least drift."""
README = f"""{ABOUT}

Lengths between, other seeds, another text and the best of what else was tried: [docs/front.md](docs/front.md). `make
results` writes both from the records. How the recipes were chosen: [docs/recipes.md](docs/recipes.md).
"""
PAGE = f"""# Accuracy against speed

Written by `python -m bench.accuracy.report` from `bench/records/front/`, a file a model; change nothing here. The full
tables, every pipeline by task, are a command: `sparsekit page bench/records/front/{EMBEDDED}.jsonl page.md`. Another
model is measured by `sparsekit eval MODEL`.

{ABOUT}
"""
CLAIMED = (
    f"Claimed, of at least {ENOUGH} answers at each model and length, and checked by the tests; "
    "other seeds and another text do not contradict it:"
)
NOT_CLAIMED = "Meant, and not claimed yet. Check a recipe before you rely on it:"
STEPS = "| | pipeline | spec | answers | difference | text, nats | density | speed-up |"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change")] = False,
    records: Annotated[Path, typer.Option(help="Folder with a file of records for each model")] = FOLDER / "front",
    readme: Annotated[Path, typer.Option(help="File with the markers")] = ROOT / "README.md",
    docs: Annotated[Path, typer.Option(help="Folder for front.md and its pictures")] = ROOT / "docs",
) -> None:
    """Bring docs/front.md and the table of recipes in the README up to date with the records."""
    models, others = read_all(records), read_all(records / "confirmation")
    shown = "\n\n".join((table(models, ends_only=True, papers=PUBLISHED), *(part.strip() for part in claims()), README))
    texts = {docs / "front.md": page(models, others)}
    texts[readme] = MARKED.sub(lambda found: f"{found[1]}\n{shown}{found[2]}", readme.read_text())
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        if stale:
            typer.echo(
                f"{', '.join(path.name for path in stale)}: not what the records say; run -m bench.accuracy.report"
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
    """Markdown."""
    parts = [PAGE, "## Recipes\n", table(models), "", *specs(), *claims()]
    if others:
        late = "Asked once, after the choice; what the embedded model says was known when `fast` got its parameters.\n"
        parts += ["## Other seeds, another text\n", late, table(others), ""]
    for measured in models:
        parts += [f"## {measured.model}\n", *tasks(measured)]
        for length in measured.lengths:
            parts += [f"### {measured.named(length)}\n"]
            if drawn(measured, length):
                parts += [f"![Answers right over speed-up]({picture(measured, length)})\n", steps(measured, length)]
    parts += ["## Where the figures are from\n"]
    parts += [f"{one.model}, times:\n\n{source(timed(one))}\n{machines(one)}" for one in models]
    parts += [f"{one.model}, other seeds and text:\n\n{machines(one)}" for one in others]
    return "\n".join(parts).rstrip() + "\n"


def table(models: Iterable[Measured], ends_only: bool = False, papers: Iterable[str] = tuple(PAPERS)) -> str:
    """Return the recipes and the papers' settings on each model at each length; `ends_only`: the shortest and longest.

    A recipe that was not measured there is listed as such, a paper's setting is left out.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---|" + "---:|" * 6 + "---|"]
    for measured in models:
        lengths = measured.lengths
        for length in sorted({lengths[0], lengths[-1]}) if ends_only else lengths:
            settings = [(PAPERS[name], measured.pipeline(name, length)) for name in papers]
            named = [one for one in settings if one[1]]
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
    """Return what the recipes are."""
    return ["\n".join(f"- `{name}`: `{make().to_spec()}`" for name, make in recipes.PIPELINES.items()) + "\n"]


def claims() -> list[str]:
    """Return what is claimed of them, which the tests check on every model in the tables, and what is not."""
    listed = lambda some: "\n".join(f"- `{name}`: {claim}" for name, claim in some.items()) + "\n"  # noqa: E731
    parts = [f"{CLAIMED}\n", listed(CLAIMS)] if CLAIMS else []
    meant = {name: claim for name, claim in TARGETS.items() if name not in CLAIMS}
    return parts + ([f"{NOT_CLAIMED}\n", listed(meant)] if meant else [])


def tasks(measured: Measured) -> list[str]:
    """Return which tasks the figures are of, and which they are not of and why."""
    counted = sorted({task for row in measured.rows for task in row.tasks})
    least = min((row.right.n for row in measured.rows if row.right), default=0)
    parts = [f"{least} prompts or more for each pipeline and length. Tasks: {names(counted)}."]
    for length, lacking in measured.uncounted.items():
        if lacking:
            listed = ", ".join(f"`{task}` {share(part)}" for task, part in lacking.items())
            parts.append(f"Left out at {measured.named(length)}, as dense attention finds too little: {listed}.")
    known = TASKS if measured.model == EMBEDDED else IN_WORDS
    if unasked := sorted(known.keys() - measured.tasks):
        parts.append(f"Tasks that were not measured: {names(unasked)}.")
    return [" ".join(parts) + "\n"]


def steps(measured: Measured, length: int) -> str:
    """Return the points on the front, as the picture numbers them."""
    lines = [STEPS, "|---:|---|---|" + "---:|" * 5]
    for number, row in enumerate(ranked(measured.at(length)), 1):
        of = figures(row)
        cells = [str(number), escaped(row.pipeline), f"`{escaped(row.spec)}`", of["right"], of["difference"]]
        cells.append(text(row.text))
        lines.append(f"| {' | '.join([*cells, of['density'], of['speed-up']])} |")
    return "\n".join(lines) + "\n"


def timed(measured: Measured) -> list[dict]:
    """Return the headers of the runs that times are of."""
    used = runs_of_times(measured.lines)
    return [run for run in runs(measured.lines) if run["run"] in used]


def machines(measured: Measured) -> str:
    """Return on which chips, at which commits, prompts and texts were read."""
    headers = {run["run"]: run for run in measured.headers}
    found = [f"Text: {measured.headers[0]['text']}, {measured.headers[0]['dtype']}."]
    for kind, name in {"answers": "Answers", "after": "Text after"}.items():
        used = (headers[line["run"]] for line in measured.lines if line["kind"] == kind)
        places = dict.fromkeys(f"{run['gpu']} ({(run['commit'] or 'no commit')[:7]})" for run in used)
        found += [f"{name}: {', '.join(places)}."] if places else []
    return " ".join(found) + "\n"


def share(part: Estimate | None) -> str:
    return "" if part is None else f"{part.value:.1%}"


def text(estimate: Estimate | None) -> str:
    """ "+0.0038 [+0.0008, +0.0074]", or "~ +0.0010 [-0.0007, +0.0028]" where no difference is sure."""
    if estimate is None:
        return ""
    if estimate.n < 2:
        return f"{estimate.value:+.4f} of one text"
    sure = "~ " if estimate.includes_zero else ""
    return f"{sure}{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def names(tasks: Iterable[str]) -> str:
    return ", ".join(f"`{task}`" for task in tasks)


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


def drawn(measured: Measured, length: int) -> bool:
    """Return whether there is something to draw."""
    return any(row.right and row.speed_up for row in measured.at(length))


def picture(measured: Measured, length: int) -> str:
    return f"front-{re.sub(r'[^a-z0-9.]+', '-', measured.model.lower())}-{thousands(length)}.png"


if __name__ == "__main__":
    typer.run(main)
