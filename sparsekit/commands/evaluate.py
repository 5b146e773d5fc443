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
FIRST = 2048  # the shortest default length; each next one is twice as long
ROOM = 64  # columns of the terminal that the widest figures take beside a pipeline's name
NAME = 16  # letters of a name that are shown however narrow the terminal is
WHOLE = ("right", "difference", "text, nats")  # columns whose cells are never broken over lines
TABLES = {
    (
        "{}: answers",
        "[ ]: 95% intervals; difference: from dense on the same prompts, in points (~: 0 is inside the interval); "
        "p: how likely chance alone gives a difference this large",
    ): ("right", "difference", "p"),
    (
        "{}: attention",
        "kept: part of the queries; density: part of the pairs; speed-up: of attention, over the fastest dense here",
    ): ("kept", "density", "attention ms", "speed-up", "first token ms"),
    (
        "{}: the text that follows",
        "text: loss minus the loss after a dense prefill, nats per token; KL: from dense, nats; agreement: part of "
        "tokens where the likeliest is dense attention's",
    ): ("text, nats", "KL", "agreement"),
}


def evaluate(
    model: Model,
    pipelines: Annotated[
        list[str] | None,
        Option(
            "--pipelines",
            "--pipeline",
            help="Recipes, specs or schedules (a .json file or a folder with one), separated by commas or semicolons; "
            "the option may be repeated; default: lossless,balanced,fast",
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        Option(
            "--lengths",
            "--length",
            help='Lengths of prompts, such as "4K,32K": tokens with the reply, or for "embedded" bytes; default: 2K, '
            "4K, 8K, ... up to the model's number of positions",
        ),
    ] = None,
    tasks: Annotated[
        str, Option(help='Tasks, separated by commas; "claimed": those that a claim may rest on; "all": every task')
    ] = "claimed",
    questions: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts of each task at each length, at least 1")] = 4,
    texts: Annotated[
        int, Option(max=MOST_PROMPTS, help="Real texts per length; the loss is measured on the text that follows")
    ] = 4,
    file: Annotated[Path | None, Option(help="Text to hide facts in; default: Python's standard library")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    rope_scaling: Annotated[
        str | None, Option(help='Stretch rotary positions beyond the model\'s own length: "yarn:4", or JSON')
    ] = None,
    out: Annotated[
        Path | None, Option(help="File of records, one per line; results that it already has are not measured again")
    ] = None,
    page: Annotated[Path | None, Option(help="Markdown page to write; its pictures are written beside it")] = None,
    timed: Annotated[int, Option(max=MOST_PROMPTS, help="Prompts per length to time; 0: none")] = 3,
    again: Annotated[
        bool, Option("--again", help="Time again even if the records have a time; answers are not asked again")
    ] = False,
    commit: Annotated[
        str | None, Option(envvar="SPARSEKIT_COMMIT", help="Git revision to record: git describe --always --dirty")
    ] = None,
) -> None:
    """Ask a model about long texts, dense and sparse: right answers, loss on the text that follows, attention time.

    MODEL may also be a .gguf file. Stages always run here, even on prompts too short to gain from them.
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
    chosen = {by_new_names(name): read_pipeline(name) for name in _apart(pipelines or RECIPES) if name != DENSE}
    given = _lengths(lengths) if lengths else None
    known = (*testbed.TASKS, "trained") if model == EMBEDDED else (*in_words.TASKS,)
    for word in _words([tasks], ","):  # before the model is loaded, which takes long
        check_choice("tasks", word, (*known, "claimed", "all"))
    text = testbed.read_text(file)
    if page and page.is_dir():
        raise ValueError(f"page: got {str(page)!r}, which is a folder; allowed is a file to write: name one in it")
    if page and timed:
        needs("matplotlib", "plots")  # now, not after everything is measured
    records = Records(out)
    if records.torn:
        say(f"{out}: its last line was cut off; that result is measured again")
    with progress() as on_step, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "sparsekit: .* ran dense in all")  # the table's density shows it
        loaded = load(model, device, rope_scaling, dtype)
        source = Bytes(text) if loaded.words is None else Words(loaded.words, text)
        names = tuple(dict.fromkeys(task for word in _words([tasks], ",") for task in source.groups.get(word, (word,))))
        sizes = _within(loaded.model, given, source.unit, rope_scaling)
        prompts = Prompts(source, names, sizes, questions, texts, seed)
        what = loaded.model, chosen, prompts, records
        compare(*what, name=loaded.name, timed=timed, again=again, commit=commit, on_step=on_step)
    shown = {DENSE, *chosen}
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
    """Return the lengths; by default FIRST, doubled up to the model's number of positions.

    Raises ValueError for a length beyond the model's positions.
    """
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
            f"are at most {most:,}: pass shorter lengths, or stretch the positions, such as --rope-scaling "
            '"yarn:4"'
        )
    return lengths


def _numbered(names: Iterable[str], width: int) -> dict[str, str]:
    """Return the number by which tables call each pipeline whose name is too long for the terminal."""
    long = [name for name in dict.fromkeys(names) if len(name) > max(width - ROOM, NAME)]
    return {name: f"({number})" for number, name in enumerate(long, 1)}


def _tables(rows: "Sequence[Row]", unit: str, called: Mapping[str, str], width: int) -> Iterator[Table]:
    """Yield the tables of the rows of one length; `called` maps long names of pipelines to short ones."""
    from ..evaluation.page import counts, figures, parts, that_were_asked, thousands
    from ..evaluation.rows import COUNTS

    if not rows:
        return
    where = f"{thousands(rows[0].length)} {unit}"
    for (title, caption), names in TABLES.items():
        shown = [row for row in rows if any(figures(row)[name] for name in names)]
        columns = [name for name in names if any(figures(row)[name] for row in shown)]
        table = _table(title.format(where), caption, "pipeline", *columns)
        for row in shown:
            table.add_row(called.get(row.pipeline, row.pipeline), *(figures(row)[name] for name in columns))
        if shown:
            yield table
    answered = that_were_asked(rows)
    heads = [called.get(row.pipeline, row.pipeline) for row in answered]
    per_table = max((width - 2 * NAME) // (max(map(len, heads), default=0) + 3), 1)
    for some in (range(len(answered))[at : at + per_table] for at in range(0, len(answered), per_table)):
        caption = f"in percent; tasks that dense answers right less than {COUNTS:.0%} of the time do not count"
        table = _table(f"{where}: right by task", caption, "task", *(heads[at] for at in some), "counts")
        for task in dict.fromkeys(task for at in some for task in answered[at].tasks):
            these = [answered[at] for at in some]
            table.add_row(task, *parts(these, task), counts(these, task))
        yield table


def _table(title: str, caption: str, first: str, *others: str) -> Table:
    table = Table(Column(first, overflow="fold", min_width=NAME), title=title, caption=caption, box=MINIMAL)
    for name in others:
        table.add_column(name, justify="right", overflow="fold", no_wrap=name in WHOLE)
    return table


def _lengths(texts: Iterable[str]) -> tuple[int, ...]:
    """Return lengths as numbers: "4K,5000" is (4096, 5000)."""
    words = _words(texts, ",")
    matches = [re.fullmatch(r"(\d+)(K?)", word, re.IGNORECASE) for word in words]
    if not all(matches):
        raise ValueError(
            f'lengths: got {",".join(words)!r}; allowed are numbers such as "4K,5000": write them like that'
        )
    return tuple(int(match[1]) * (1024 if match[2] else 1) for match in matches if match)


def _apart(texts: Iterable[str]) -> tuple[str, ...]:
    """Split texts at commas and semicolons, except inside brackets or quotes."""
    parts = []
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
                parts.append(text[start:at])
                start = at + 1
        parts.append(text[start:])
    return tuple(dict.fromkeys(word.strip() for word in parts if word.strip()))


def _words(texts: Iterable[str], between: str) -> tuple[str, ...]:
    return tuple(word.strip() for text in texts for word in text.split(between) if word.strip())
