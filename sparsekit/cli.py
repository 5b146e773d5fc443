"""The command line: `sparsekit demo`, `sparsekit backends`. Bad input is one line on stderr and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def _root() -> None:
    """Sparse attention for long-context prefill: training-free methods as stages that stack."""


@app.command()
def demo(
    file: Annotated[
        Path | None, typer.Argument(help="Text to hide facts in; default: Python's standard library")
    ] = None,
    length: Annotated[int, typer.Option(help="Bytes of a prompt, at least 1024")] = 16384,
    questions: Annotated[int, typer.Option(help="Prompts, one question each, at least 1")] = 4,
    pipeline: Annotated[list[str] | None, typer.Option(help="Spec of a pipeline; may be given several times")] = None,
    seed: Annotated[int, typer.Option(help="Chooses text, facts and places")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for plan.png and demo.json")] = Path("demo"),
) -> None:
    """Ask a long-context model about real text, dense beside sparse, and draw one head's plan."""
    from transformers.utils.logging import disable_progress_bar

    from .demo import PIPELINES, run_demo
    from .plots import draw_plan
    from .testbed import read_text

    disable_progress_bar()  # of loading 15 MB, in the middle of ours
    console, errors = Console(), Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    _check_device(device)
    out.mkdir(parents=True, exist_ok=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=errors, transient=True, disable=not errors.is_terminal
    ) as progress:
        task = progress.add_task("loading", total=None)
        found = run_demo(
            read_text(file),
            length=length,
            questions=questions,
            pipelines={f"pipeline {i}": spec for i, spec in enumerate(pipeline, 1)} if pipeline else PIPELINES,
            seed=seed,
            device=device,
            on_step=lambda done, total, name: progress.update(task, completed=done, total=total, description=name),
        )
    console.print(found.table())
    for sentence in found.sentences():
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print(f"figures: {found.save(out / 'demo.json')}", markup=False, highlight=False, soft_wrap=True)
    shown = found.picture
    title = f"{found.rows[-1].spec}\nlayer {shown.layer}, head {shown.head}"
    try:
        picture = str(draw_plan(shown.problem, shown.plan, out / "plan.png", head=shown.head, title=title))
    except ImportError as missing:
        picture = f"none: {missing}"
    console.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def backends() -> None:
    """Which backend has which operation, and why not."""
    from . import dispatch

    table = Table("operation", *dispatch.BACKENDS)
    for op, row in dispatch.table().items():
        table.add_row(op, *("yes" if reason is None else reason for reason in row.values()))
    console = Console()
    console.print(table)
    for device, order in dispatch.AUTO.items():
        console.print(f'"auto" on {device}: {", then ".join(order)}', highlight=False)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: got {device!r}, which cannot be used ({str(error).splitlines()[0]}); allowed are auto, cpu, and "
            "cuda where there is one: pass one of those"
        ) from error


def main() -> None:
    """The entry point: what a user can mend is one line, not a traceback."""
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        print(f"sparsekit: {error}", file=sys.stderr)
        sys.exit(2)
