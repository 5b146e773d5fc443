"""sparsekit eval"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Column, Table
from typer import Option

from .loading import load
from .options import EMBEDDED, MOST_PROMPTS, Device, Model, Seed
from .progress import progress

if TYPE_CHECKING:
    from ..testbed.front import Row


def evaluate(
    model: Model,
    pipelines: Annotated[
        list[str],
        Option(
            "--pipelines",
            "--pipeline",
            help="Specs, or schedules (a .json file or a folder with one), with ; between; may be given several times",
        ),
    ],
    lengths: Annotated[
        list[str], Option("--lengths", "--length", help='Bytes of a prompt, at least 1024, such as "4K,32K"')
    ],
    tasks: Annotated[
        str, Option(help="Tasks, with commas between; claimed: those that the embedded model can do; trained; all")
    ] = "claimed",
    questions: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts of each task at each length, at least 1")] = 4,
    file: Annotated[Path | None, Option(help="Text to hide facts in; default: Python's standard library")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path | None, Option(help="Records, one a line; what is there already is not done again")] = None,
    page: Annotated[Path | None, Option(help="Markdown page to write, its pictures beside it")] = None,
    timed: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts of each length that times are of; 0: no times")] = 3,
    again: Annotated[bool, Option("--again", help="Time again what has a time in the records")] = False,
    commit: Annotated[
        str | None, Option(envvar="SPARSEKIT_COMMIT", help="Of the code, as git describe --always --dirty says it")
    ] = None,
) -> None:
    """Ask a model for facts hidden in real text, dense beside sparse: answers right, and what attention costs.

    Pipelines run however short a prompt is: this is what they do, not whether they pay.
    """
    from .. import testbed
    from ..schedules import read_pipeline
    from ..testbed.comparison import DENSE, Prompts, compare
    from ..testbed.front import front
    from ..testbed.page import write_page
    from ..testbed.records import Records

    console = Console()
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    asked = {name: read_pipeline(name) for name in _words(pipelines, ";") if name != DENSE}
    groups = {"all": testbed.TASKS, "claimed": testbed.CLAIMED, "trained": testbed.TRAINED}
    chosen = tuple(dict.fromkeys(task for word in _words([tasks], ",") for task in groups.get(word, (word,))))
    prompts = Prompts(testbed.read_text(file), chosen, _lengths(lengths), questions, seed)
    if page and page.is_dir():
        raise ValueError(f"page: got {str(page)!r}, which is a folder; allowed is a file to write: name one in it")
    records = Records(out)
    if records.torn:
        say(f"{out}: its last line was cut off and is done again")
    loaded = load(model, device)
    name = Path(model).resolve().name if model != EMBEDDED and Path(model).is_dir() else model
    given = loaded.model, asked, prompts, records
    with progress() as on_step:
        compare(*given, name=name, tokenizer=loaded.tokenizer, timed=timed, again=again, commit=commit, on_step=on_step)
    shown = {DENSE, *asked}
    rows = [
        row for row in front(records.lines) if row.length in prompts.lengths and (row.dense or row.pipeline in shown)
    ]
    for length in prompts.lengths:
        console.print(_table([row for row in rows if row.length == length]))
    for row in rows:
        if row.failed:
            say(f"{row.pipeline}, {row.length:,} bytes: {row.failed}")
    if page:
        say(f"page: {write_page(records.lines, page)}")


def _table(rows: "Sequence[Row]") -> Table:
    from ..testbed.page import figures

    table = Table(
        Column("pipeline", overflow="fold"),
        title=f"{rows[0].length:,} bytes, {rows[0].tokens:,.0f} tokens",
        caption="[ ]: 95% intervals; difference: from dense, on the same prompts, ~: none is sure; attention: over all "
        "layers; speed-up: of attention, over the fastest dense of the run; kept: queries, density: pairs",
    )
    for name in figures(rows[0]):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.pipeline, *figures(row).values())
    return table


def _lengths(texts: Iterable[str]) -> tuple[int, ...]:
    """ "4K,5000" -> (4096, 5000)."""
    words = _words(texts, ",")
    found = [re.fullmatch(r"(\d+)(K?)", word, re.IGNORECASE) for word in words]
    if not all(found):
        raise ValueError(f'lengths: got {",".join(words)!r}; allowed are numbers of bytes such as "4K,5000": write so')
    return tuple(int(match[1]) * (1024 if match[2] else 1) for match in found if match)


def _words(texts: Iterable[str], between: str) -> tuple[str, ...]:
    return tuple(word.strip() for text in texts for word in text.split(between) if word.strip())
