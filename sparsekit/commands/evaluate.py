"""sparsekit eval"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Column, Table
from typer import Option

from ..testbed import TASKS, Score
from .loading import load
from .options import Device, Model, Seed
from .progress import progress


def evaluate(
    model: Model,
    pipeline: Annotated[
        list[str], Option(help="Spec, or schedule: a .json file or a folder with one; may be given several times")
    ],
    length: Annotated[list[int], Option(help="Bytes of a prompt, at least 1024; may be given several times")],
    questions: Annotated[int, Option(help="Prompts of each task at each length, at least 1")] = 4,
    file: Annotated[Path | None, Option(help="Text to hide facts in; default: Python's standard library")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Ask a model for facts hidden in real text, dense beside sparse: the digits right, task by task.

    Pipelines run however short a prompt is: this is what they do, not whether they pay.
    """
    from .. import testbed
    from ..integrations.transformers import sparsify
    from ..parameters import check_count
    from ..schedules import always, read_pipeline

    check_count("questions", questions, 1)
    asked = {"dense": always(read_pipeline("dense"))} | {name: always(read_pipeline(name)) for name in pipeline}
    text = testbed.read_text(file)
    samples = {
        size: [task(text, size, seed + i) for task in TASKS.values() for i in range(questions)] for size in length
    }
    loaded, console = load(model, device), Console()
    done, total = 0, len(TASKS) * questions * len(length) * len(asked)
    with progress() as on_step:
        for size, mine in samples.items():
            scores: dict[str, list[Score]] = {name: [] for name in asked}
            for name, how in asked.items():
                with sparsify(loaded.model, how):
                    for sample in mine:
                        scores[name] += testbed.evaluate(loaded.model, [sample], tokenizer=loaded.tokenizer)
                        done += 1
                        on_step(done, total, name)
            tokens = statistics.mean(len(loaded.tokenizer.encode(sample.prompt)) for sample in mine)
            console.print(_table(f"{size:,} bytes, {tokens:,.0f} tokens", scores))


def _table(title: str, scores: dict[str, list[Score]]) -> Table:
    table = Table(
        Column("pipeline", overflow="fold"), title=title, caption="part of the digits right; answers: whole ones right"
    )
    for task in TASKS:
        table.add_column(task.replace("_", " "), justify="right")
    table.add_column("all", justify="right")
    table.add_column("answers", justify="right")
    for name, mine in scores.items():
        parts = [_right([score for score in mine if score.task == task]) for task in TASKS]
        whole = f"{sum(score.whole for score in mine)}/{len(mine)}"
        table.add_row(name, *(f"{part:.3f}" for part in (*parts, _right(mine))), whole)
    return table


def _right(scores: Sequence[Score]) -> float:
    return sum(score.right for score in scores) / sum(score.digits for score in scores)
