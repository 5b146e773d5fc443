"""Asks the embedded model under every pipeline: python -m bench.front.run --device cuda --lengths 32K,128K

One process alone takes the times first. Then several ask, each its share of the prompts, on the GPUs that are there:
one would idle while the host prepares a short call. What the output has already is not asked again, so a run that was
cut off goes on. What is in bench/records/front/ of the model's weights of now, of the pipelines in the tables of
docs/front.md (`--only`), each with --device cuda --processes 16 --each 16:

    evaluation    --lengths 32K,64K,128K
    confirmation  --lengths 32K,128K --timed 0 --seed 4000000 --packages hypothesis,pytest,rich,pygments
    left_out      --lengths 4K,32K,128K --timed 0 --tasks common_words,frequent_words,question_answering
"""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.multiprocessing import get_context

from bench.front.pipelines import PIPELINES
from bench.inputs import lengths as parse_lengths
from sparsekit import Pipeline
from sparsekit.integrations.transformers import sparsify
from sparsekit.schedules import always
from sparsekit.testbed import CLAIMED, load_model, read_text
from sparsekit.testbed.comparison import Prompts, compare, what
from sparsekit.testbed.loss import bits_after, bits_by_position
from sparsekit.testbed.records import Record, Records, provenance

NAME = "embedded"
DENSE: dict[str, Any] = {"dense": None}
PIECES = 5  # seeds below this read a piece of text by position, too
console = Console(stderr=True, width=120)


class Late(Exception):
    """The time is over."""


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    lengths: Annotated[str, typer.Option(help='Bytes, such as "32K,128K"')] = "4K",
    each: Annotated[int, typer.Option(help="Prompts of a task at a length", min=1)] = 8,
    tasks: Annotated[str, typer.Option(help="Separated by commas; default: those that claims rest on")] = "",
    only: Annotated[
        str, typer.Option(help='Pipelines of these names, or with one of these in theirs, split at ";"')
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the first prompt of each task")] = 0,
    file: Annotated[Path | None, typer.Option(help="Text to hide facts in; default: Python's library")] = None,
    packages: Annotated[str, typer.Option(help="Or the source of these installed packages, split at commas")] = "",
    processes: Annotated[int, typer.Option(help="That ask at a time", min=1)] = 1,
    timed: Annotated[int, typer.Option(help="Prompts that times are of; 0: none", min=0)] = 2,
    seconds: Annotated[float, typer.Option(help="Ask nothing after these", min=1)] = 540,
    out: Annotated[Path, typer.Option(help="File of records")] = Path("front.jsonl"),
    commit: Annotated[str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="What git describe says")] = None,
) -> None:
    """float32 on a CPU, bfloat16 on a GPU."""
    deadline = time.time() + seconds
    words = [word.strip() for word in only.split(";") if word.strip()]
    named = [name.strip() for name in tasks.split(",") if name.strip()] or list(CLAIMED)
    sizes = parse_lengths(lengths)
    shares = [range(first, seed + each, processes) for first in range(seed, min(seed + processes, seed + each))]
    text = source(packages.split(",")) if packages else read_text(file)
    parts = [out.with_name(f".{out.name}.{number}") for number in range(len(shares))]
    records = Records(out)
    for part in parts:
        if part.exists():  # of a run that was cut off
            _take(records, part)
    if timed:
        model = load(device)
        for size in sizes:
            prompts = Prompts(text, named[:timed], [size], 1, seed)
            compare(model, chosen(words), prompts, records, name=NAME, timed=timed, commit=commit)
        del model
    context = get_context("spawn")
    where = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if device == "cuda" else [device]
    asked = dict(words=words, tasks=named, sizes=sizes, text=text, commit=commit, deadline=deadline)
    running = []
    for number, (share, part) in enumerate(zip(shares, parts, strict=True)):
        part.write_bytes(out.read_bytes() if out.exists() else b"")
        how = asked | {"device": where[number % len(where)]}
        running.append(context.Process(target=ask, args=(list(share), part), kwargs=how))
        running[-1].start()
    for process, part in zip(running, parts, strict=True):
        process.join()
        _take(records, part)
    if any(process.exitcode for process in running):
        raise typer.Exit(1)
    console.print(f"{len(records.lines)} records in {out}")


def ask(
    share: list[int],
    part: Path,
    *,
    words: list[str],
    tasks: list[str],
    sizes: list[int],
    text: bytes,
    deadline: float,
    **how: Any,
) -> None:
    """One process: its seeds, one after another, so that a deadline cuts off prompts and not pipelines."""
    if how["device"].startswith("cuda"):
        torch.cuda.set_device(how["device"])  # Triton launches on the current one
    model, records, ways = load(how["device"]), Records(part), chosen(words)

    header = provenance(model, NAME, Prompts(text, tasks, sizes, 1, share[0]).identity, how["commit"])

    def on_step(*_: Any) -> None:
        if time.time() > deadline:
            raise Late

    try:
        for seed in share:
            for size in sizes:
                prompts = Prompts(text, tasks, [size], 1, seed)
                compare(model, ways, prompts, records, name=NAME, timed=0, commit=how["commit"], on_step=on_step)
                broken = {x["pipeline"] for x in records.lines if x["kind"] == "failed" and x["length"] == size}
                for name, way in (DENSE | ways).items():
                    on_step()
                    if name in broken:
                        continue
                    read(model, text, size, seed, name, way, records, header)
    except Late:
        pass


def read(
    model: Any, text: bytes, length: int, seed: int, name: str, way: Any, records: Records, header: Record
) -> None:
    """Add how surprised the model is by a piece of the text alone, and by what follows it, unless that is there.

    They are of the run that `header` is of: the last one in the records may be of another machine.
    """
    known = {(line["kind"], line.get("pipeline"), line.get("length"), line.get("seed")) for line in records.lines}
    how = lambda: sparsify(model, always(way)) if way else nullcontext()  # noqa: E731

    def add(found: Record) -> None:
        records.append(*([] if header in records.lines else [header]), found)

    line = dict(run=header["run"], pipeline=name, what=what(way) if way else name, length=length, seed=seed)
    if seed < PIECES and ("loss", name, length, seed) not in known:
        found = bits_by_position(model, text, length, seed, how)
        add(dict(kind="loss") | line | dict(bits=[[one.end, round(one.bits, 5)] for one in found]))
    if ("after", name, length, seed) not in known:
        bits = bits_after(model, text, length, seed, how)
        add(dict(kind="after") | line | dict(bits=round(bits, 5)))


def source(packages: Iterable[str]) -> bytes:
    """The Python source of installed packages, files in the order of their names."""
    files = {
        file.as_posix(): Path(str(file.locate()))
        for package in packages
        for file in metadata.files(package.strip()) or ()
        if file.suffix == ".py" and ".." not in file.parts
    }
    return b"".join(files[name].read_bytes() for name in sorted(files))


def load(device: str) -> Any:
    return load_model(torch.float32 if device == "cpu" else torch.bfloat16, device)


def chosen(words: list[str]) -> dict[str, Any]:
    """The pipelines of these names; a word that is no name stands for all that have it in theirs; none for all."""
    parts = [word for word in words if word not in PIPELINES]
    picked = lambda name: not words or name in words or any(part in name for part in parts)  # noqa: E731
    named = {name: how for name, how in PIPELINES.items() if picked(name)}
    return {name: Pipeline.from_spec(how) if isinstance(how, str) else how for name, how in named.items()}


def _take(records: Records, part: Path) -> None:
    """The lines of a part that are new, into the records; the part is gone."""
    known = {_key(line) for line in records.lines}
    records.append(*[line for line in Records(part).lines if _key(line) not in known])
    part.unlink()


def _key(line: dict[str, Any]) -> tuple:
    return tuple(line.get(name) for name in ("kind", "run", "pipeline", "length", "task", "seed"))


if __name__ == "__main__":
    typer.run(main)
