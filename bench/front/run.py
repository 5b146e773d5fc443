"""Asks the embedded model under every pipeline: python -m bench.front.run --device cuda --lengths 32K,128K

Several processes ask, each its share of the prompts, because the GPU idles while the host prepares a short call; one
alone takes the times afterwards. What the output has already is not asked again, so a run that was cut off goes on.
"""

import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.multiprocessing import get_context

from bench.front.pipelines import PIPELINES
from bench.inputs import lengths as parse_lengths
from sparsekit.schedules import Layers
from sparsekit.testbed import CLAIMED, TASKS, compare, load_model, read_text
from sparsekit.testbed.comparison import Prompts
from sparsekit.testbed.records import Records
from sparsekit.schedules import read_pipeline

console = Console(stderr=True, width=120)


class Late(Exception):
    """The time is over."""


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    lengths: Annotated[str, typer.Option(help='Bytes, such as "32K,128K"')] = "4K",
    each: Annotated[int, typer.Option(help="Prompts of a task at a length", min=1)] = 8,
    tasks: Annotated[str, typer.Option(help="Separated by commas; default: those that claims rest on")] = "",
    only: Annotated[str, typer.Option(help='Pipelines whose name has one of these in it, split at ";"')] = "",
    seed: Annotated[int, typer.Option(help="Of the first prompt of each task")] = 0,
    file: Annotated[Path | None, typer.Option(help="Text to hide facts in; default: Python's library")] = None,
    processes: Annotated[int, typer.Option(help="That ask at a time", min=1)] = 1,
    timed: Annotated[int, typer.Option(help="Prompts that times are of; 0: none", min=0)] = 2,
    seconds: Annotated[float, typer.Option(help="Ask nothing after these", min=1)] = 540,
    out: Annotated[Path, typer.Option(help="File of records")] = Path("front.jsonl"),
    commit: Annotated[str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="What git describe says")] = None,
) -> None:
    """float32 on a CPU, bfloat16 on a GPU."""
    deadline = time.time() + seconds
    words = [word.strip() for word in only.split(";") if word.strip()]
    chosen = {name: how for name, how in PIPELINES.items() if not words or any(word in name for word in words)}
    named = [name.strip() for name in tasks.split(",") if name.strip()] or list(CLAIMED)
    sizes = parse_lengths(lengths)
    shares = [range(first, seed + each, processes) for first in range(seed, min(seed + processes, seed + each))]
    parts = [out.with_name(f".{out.name}.{number}") for number in range(len(shares))]
    records = Records(out)
    for part in parts:
        if part.exists():  # of a run that was cut off
            _take(records, part)
    context = get_context("spawn")
    asked = dict(device=device, chosen=chosen, tasks=named, sizes=sizes, file=file, commit=commit, deadline=deadline)
    running = []
    for share, part in zip(shares, parts, strict=True):
        part.write_bytes(out.read_bytes() if out.exists() else b"")
        running.append(context.Process(target=ask, args=(list(share), part), kwargs=asked))
        running[-1].start()
    wait([process.sentinel for process in running])
    for process, part in zip(running, parts, strict=True):
        process.join()
        _take(records, part)
    if any(process.exitcode for process in running):
        raise typer.Exit(1)
    if timed:
        model = load(device)
        for size in sizes:
            prompts = Prompts(read_text(file), named, [size], 1, seed)
            compare(model, pipelines(chosen), prompts, records, name="embedded", timed=timed, commit=commit)
    console.print(f"{len(records.lines)} records in {out}")


def ask(share: list[int], part: Path, *, chosen: dict, tasks: list[str], sizes: list[int], deadline: float, **how: Any) -> None:
    """One process: its seeds, one after another, so that a deadline cuts off prompts and not pipelines."""
    model, text, records = load(how["device"]), read_text(how["file"]), Records(part)

    def on_step(done: int, total: int, name: str) -> None:
        if time.time() > deadline:
            raise Late

    try:
        for seed in share:
            for size in sizes:
                prompts = Prompts(text, tasks, [size], 1, seed)
                compare(
                    model, pipelines(chosen), prompts, records, name="embedded", timed=0, commit=how["commit"],
                    on_step=on_step,
                )  # fmt: skip
    except Late:
        pass


def load(device: str) -> Any:
    return load_model(torch.bfloat16 if device == "cuda" else torch.float32, device)


def pipelines(chosen: dict[str, str | Layers]) -> dict[str, Any]:
    return {name: read_pipeline(how) if isinstance(how, str) else how for name, how in chosen.items()}


def _take(records: Records, part: Path) -> None:
    """The lines of a part that are new, into the records; the part is gone."""
    known = {_key(line) for line in records.lines}
    records.append(*[line for line in Records(part).lines if _key(line) not in known])
    part.unlink()


def _key(line: dict[str, Any]) -> tuple:
    return tuple(line.get(name) for name in ("kind", "run", "pipeline", "length", "task", "seed"))


if __name__ == "__main__":
    typer.run(main)
