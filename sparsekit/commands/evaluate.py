"""sparsekit eval"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.box import MINIMAL
from rich.console import Console
from rich.table import Column, Table
from typer import Option

from ..checks import check_choice
from ..extras import needs
from .options import EMBEDDED, MOST_PROMPTS, Device, Dtype, Model, Seed

if TYPE_CHECKING:
    from ..evaluation.rows import Row


RECIPES = ("lossless,balanced,fast",)
FIRST = 2048  # of the lengths that double
ROOM = 64  # columns of the terminal that the widest figures take beside a pipeline's name
NAME = 16  # letters of a name that are shown however narrow it is
WHOLE = ("right", "difference", "text, nats")  # columns whose cells stay on a line
TABLES = {
    (
        "{}: answers",
        "[ ]: 95% intervals; difference: from dense, on the same prompts, in points, ~: none is sure; p: how likely it "
        "is by chance",
    ): ("right", "difference", "p"),
    (
        "{}: attention",
        "kept: queries, density: pairs computed; speed-up: of attention, over the fastest dense of the run",
    ): ("kept", "density", "attention ms", "speed-up", "first token ms"),
    (
        "{}: the text that follows",
        "text: loss less that after a dense prefill, nats per token; KL: from dense, nats; agreement: the likeliest "
        "token is the same",
    ): ("text, nats", "KL", "agreement"),
}


def evaluate(
    model: Model,
    pipelines: Annotated[
        list[str] | None,
        Option(
            "--pipelines",
            "--pipeline",
            help="Recipes, specs or schedules (a .json file or a folder with one), with commas or ; between; may be "
            "given several times; default: lossless,balanced,fast",
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        Option(
            "--lengths",
            "--length",
            help='Tokens of a prompt with its reply, or for "embedded" bytes of a prompt, such as "4K,32K"; default: '
            "2K, 4K, 8K, ... up to the positions that the model was made for",
        ),
    ] = None,
    tasks: Annotated[
        str, Option(help="Tasks, with commas between; claimed: those that a claim may rest on; all")
    ] = "claimed",
    questions: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts of each task at each length, at least 1")] = 4,
    texts: Annotated[int, Option(max=MOST_PROMPTS, help="Real texts of each length, for the loss of what follows")] = 4,
    file: Annotated[Path | None, Option(help="Text to hide facts in; default: Python's standard library")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    rope_scaling: Annotated[
        str | None, Option(help='Stretch rotary positions to go beyond the model\'s own: "yarn:4", or JSON')
    ] = None,
    out: Annotated[Path | None, Option(help="Records, one a line; what is there already is not done again")] = None,
    page: Annotated[Path | None, Option(help="Markdown page to write, its pictures beside it")] = None,
    timed: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts of each length that times are of; 0: no times")] = 3,
    again: Annotated[bool, Option("--again", help="Time again what has a time in the records")] = False,
    commit: Annotated[
        str | None, Option(envvar="SPARSEKIT_COMMIT", help="Of the code, as git describe --always --dirty says it")
    ] = None,
) -> None:
    """Ask a model about long texts, dense beside sparse: answers found, text that follows, and what attention costs.

    MODEL may be a .gguf file, too. Pipelines run however short a prompt is: this is what they do, not whether they pay.
    """
    from .. import testbed
    from ..evaluation import tasks as in_words
    from ..evaluation.comparison import DENSE, Prompts, compare
    from ..evaluation.page import write_page
    from ..evaluation.records import Records
    from ..evaluation.rows import front
    from ..evaluation.words import Words
    from ..layers import read_pipeline
    from ..registry import by_new_names
    from ..testbed.source import Bytes
    from .loading import load
    from .progress import progress

    console = Console()
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    asked = {by_new_names(name): read_pipeline(name) for name in _apart(pipelines or RECIPES) if name != DENSE}
    given = _lengths(lengths) if lengths else None
    known = (*testbed.TASKS, "trained") if model == EMBEDDED else (*in_words.TASKS,)
    for word in _words([tasks], ","):  # before a model is loaded, which takes its time
        check_choice("tasks", word, (*known, "claimed", "all"))
    text = testbed.read_text(file)
    if page and page.is_dir():
        raise ValueError(f"page: got {str(page)!r}, which is a folder; allowed is a file to write: name one in it")
    if page and timed:
        needs("matplotlib", "plots")  # now, and not once all is measured
    records = Records(out)
    if records.torn:
        say(f"{out}: its last line was cut off and is done again")
    with progress() as on_step, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "sparsekit: .* ran dense in all")  # the density says it
        loaded = load(model, device, rope_scaling, dtype)
        source = Bytes(text) if loaded.words is None else Words(loaded.words, text)
        chosen = tuple(
            dict.fromkeys(task for word in _words([tasks], ",") for task in source.groups.get(word, (word,)))
        )
        sizes = _within(loaded.model, given, source.unit, rope_scaling)
        prompts = Prompts(source, chosen, sizes, questions, texts, seed)
        what = loaded.model, asked, prompts, records
        compare(*what, name=loaded.name, timed=timed, again=again, commit=commit, on_step=on_step)
    shown = {DENSE, *asked}
    rows = [row for row in front(records.lines) if row.length in sizes and (row.dense or row.pipeline in shown)]
    called = _numbered((row.pipeline for row in rows), console.width)
    for length in sizes:
        for table in _tables([row for row in rows if row.length == length], source.unit, called, console.width):
            console.print(table)
    for name, number in called.items():
        say(f"{number} {name}")
    for row in rows:
        if row.failed:
            say(f"{row.pipeline}, {row.length:,} {source.unit}: {row.failed}")
    if page:
        say(f"page: {write_page(records.lines, page)}")


def _within(model: Any, lengths: tuple[int, ...] | None, unit: str, rope_scaling: str | None) -> tuple[int, ...]:
    """Return the lengths, by default as many as a model has positions for. Raises ValueError for longer ones."""
    from .positions import most_positions

    most = most_positions(model)
    if lengths is None:
        if most is None:
            raise ValueError(
                "lengths: got none, and the model does not say how many positions it has; allowed are numbers of "
                f'{unit}: pass --lengths, such as "4K"'
            )
        return tuple(FIRST << i for i in range(most.bit_length()) if FIRST << i <= most) or (most,)
    if most is not None and max(lengths) > most:
        already = f", stretched by {rope_scaling}" if rope_scaling else ""
        raise ValueError(
            f"lengths: got {max(lengths):,} {unit}, and the model was made for {most:,} positions{already}; allowed "
            'are these: pass shorter lengths, or stretch the positions, such as --rope-scaling "yarn:4"'
        )
    return lengths


def _numbered(names: Iterable[str], width: int) -> dict[str, str]:
    """Return what tables call pipelines: a number for each whose name leaves no room beside it."""
    long = [name for name in dict.fromkeys(names) if len(name) > max(width - ROOM, NAME)]
    return {name: f"({number})" for number, name in enumerate(long, 1)}


def _tables(rows: "Sequence[Row]", unit: str, called: Mapping[str, str], width: int) -> Iterator[Table]:
    """Yield what is found of the rows of one length; `called` has shorter names of pipelines."""
    from ..evaluation.page import counts, figures, parts, that_were_asked, thousands
    from ..evaluation.rows import COUNTS

    if not rows:
        return
    where = f"{thousands(rows[0].length)} {unit}"
    for (title, caption), names in TABLES.items():
        shown = [row for row in rows if any(figures(row)[name] for name in names)]
        filled = [name for name in names if any(figures(row)[name] for row in shown)]
        table = _table(title.format(where), caption, "pipeline", *filled)
        for row in shown:
            table.add_row(called.get(row.pipeline, row.pipeline), *(figures(row)[name] for name in filled))
        if shown:
            yield table
    asked = that_were_asked(rows)
    heads = [called.get(row.pipeline, row.pipeline) for row in asked]
    beside = max((width - 2 * NAME) // (max(map(len, heads), default=0) + 3), 1)
    for some in (range(len(asked))[at : at + beside] for at in range(0, len(asked), beside)):
        caption = f"in percent; tasks of which dense finds less than {COUNTS:.0%} do not count"
        table = _table(f"{where}: right by task", caption, "task", *(heads[at] for at in some), "counts")
        for task in dict.fromkeys(task for at in some for task in asked[at].tasks):
            these = [asked[at] for at in some]
            table.add_row(task, *parts(these, task), counts(these, task))
        yield table


def _table(title: str, caption: str, first: str, *others: str) -> Table:
    table = Table(Column(first, overflow="fold", min_width=NAME), title=title, caption=caption, box=MINIMAL)
    for name in others:
        table.add_column(name, justify="right", overflow="fold", no_wrap=name in WHOLE)
    return table


def _lengths(texts: Iterable[str]) -> tuple[int, ...]:
    """ "4K,5000" -> (4096, 5000)."""
    words = _words(texts, ",")
    found = [re.fullmatch(r"(\d+)(K?)", word, re.IGNORECASE) for word in words]
    if not all(found):
        raise ValueError(f'lengths: got {",".join(words)!r}; allowed are numbers such as "4K,5000": write so')
    return tuple(int(match[1]) * (1024 if match[2] else 1) for match in found if match)


def _apart(texts: Iterable[str]) -> tuple[str, ...]:
    """Return what stands between commas and semicolons, but for those inside brackets or quotes."""
    found = []
    for text in texts:
        start = depth = 0
        quote = ""
        for at, letter in enumerate(text):
            if quote:
                quote = "" if letter == quote else quote
            elif letter in "'\"":
                quote = letter
            elif letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
            elif letter in ",;" and depth <= 0:
                found.append(text[start:at])
                start = at + 1
        found.append(text[start:])
    return tuple(dict.fromkeys(word.strip() for word in found if word.strip()))


def _words(texts: Iterable[str], between: str) -> tuple[str, ...]:
    return tuple(word.strip() for text in texts for word in text.split(between) if word.strip())
