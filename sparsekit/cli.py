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
    """Which backend runs which operation here, and why not."""
    from . import dispatch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table, reasons = Table("operation", *dispatch.BACKENDS), []
    for what, (op, args) in _samples(device).items():
        cells = []
        for backend in dispatch.BACKENDS:
            reason = dispatch.why_not(backend, op, *args)
            if not dispatch.has(backend, op):
                cells.append("")
            elif reason is None:
                cells.append("yes")
            else:
                line = f"{backend}: {reason}"
                reasons += [] if line in reasons else [line]
                cells.append(f"no ({reasons.index(line) + 1})")
        table.add_row(what, *cells)
    console = Console()
    console.print(f"Tried with small tensors on {device.type}; an empty cell: there is none", highlight=False)
    console.print(table)
    for number, line in enumerate(reasons, 1):
        console.print(f"({number}) {line}", markup=False, highlight=False, soft_wrap=True)
    for kind, order in dispatch.AUTO.items():
        console.print(f'"auto" on {kind}: {", then ".join(order)}', highlight=False)


def _samples(device: torch.device) -> dict[str, tuple[str, tuple]]:
    """A name, an op and its arguments, at least one for each op."""
    from . import Blocks, Output, Plan, Problem, SlidingWindow, Tokens

    x = torch.zeros(1, 1, 256, 64, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    p, some = Problem.of(x, x, x), torch.ones(1, 1, 2, dtype=torch.bool, device=device)
    kept = Tokens.of(torch.ones(1, 1, 256, dtype=torch.bool, device=device))
    tokens = Plan(kept, kept, fill=SlidingWindow(64))
    blocks = Plan(blocks=Blocks.of(torch.ones(1, 1, 2, 2, dtype=torch.bool, device=device), (128, 128)))
    scores, one = x[..., 0].float(), torch.ones(1, 1, dtype=torch.int32, device=device)
    return {
        "attend": ("attend", (p, Plan())),
        "attend, block lists": ("attend", (p, blocks)),
        "attend, indexed": ("attend", (p, Plan(kept, kept))),
        "gather_tokens": ("gather_tokens", (p, tokens)),
        "scatter_tokens": ("scatter_tokens", (p, tokens, Output(x, scores))),
        "sliding_window": ("sliding_window", (p, tokens)),
        "window_scores": ("window_scores", (p, 128)),
        "select_tokens": ("select_tokens", (scores, one)),
        "topk_mask": ("topk_mask", (scores, one)),
        "coverage_mask": ("coverage_mask", (scores, one.float(), True)),
        "coverage_count": ("coverage_count", (scores, one.float(), True)),
        "token_votes": ("token_votes", (scores, p.lengths()[1], p.lengths()[1], 7)),
        "token_budget": ("token_budget", (scores[0], 0.1, p.lengths()[1])),
        "query_aware": ("query_aware", (x[:, :, 0], x, scores, p.lengths()[1], 1.0, 0.1)),
        "seen_blocks": ("seen_blocks", (blocks.blocks, p.reach())),
        "block_means": ("block_means", (x, p.q_pos, 128)),
        "vertical_slash_blocks": ("vertical_slash_blocks", (some, some, some.int(), some.int(), None, (128, 128))),
    }


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
