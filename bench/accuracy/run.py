"""Asks a model under every pipeline: python -m bench.accuracy.run --model embedded --device cuda --lengths 32K,128K

First one process alone measures the times. Then several processes share the prompts and the GPUs: with one process a
GPU would idle while the host prepares a short call. Prompts that the output already has are skipped, so a run that was
cut off can be continued. The files of bench/records/front/ were made with --device cuda and:

    embedded.jsonl               --processes 16 --each 16 --lengths 32K,128K
    confirmation/embedded.jsonl  --processes 16 --each 16 --lengths 32K,128K --timed 0 --seed 4000000
                                 --packages hypothesis,pytest,rich,pygments
    qwen2.5-coder-0.5b.jsonl     --model qwen2.5-coder-0.5b --low 7-14,18-19,22-23 --half 0-11 --processes 16 --each 16
                                 --timed 2 --lengths 8K,16K,32K --tasks needle_before,needle_questions,
                                 facts_to_combine,variable_tracking,common_words,copy_span,needle_keys,needle_single
                                 --only "lossless;balanced;fast;FlexPrefill .9;FlexPrefill .95;FlexPrefill .99;
                                 FlexPrefill .995;tokens .005, zeros;tokens .005, zeros, low;
                                 tokens .005 | FlexPrefill .95, zeros, low;smooth .2, 128 vote, window 128, no sinks;
                                 smooth .2, 512 vote, window 512, no sinks;smooth .2, 512 vote, window 8192, no sinks;
                                 smooth .02, 512 vote | threshold .01, window 1024, last 1024"
    qwen2.5-coder-1.5b.jsonl     --model qwen2.5-coder-1.5b --low 8-18,24-26 --half 0-13, and as above without the last
                                 two tasks

    confirmation/qwen2.5-coder-0.5b.jsonl  the three recipes as above, with the seeds and packages of the embedded one

The last three took several runs, recipes first, which were cut off; later runs did what was missing. Some tasks that
count got more prompts: on the 0.5B at 16K 39 of each, at 32K 200 of the one task that counts; on the 1.5B at 32K 32 for
the recipes. 107 passes failed while several processes and a test suite filled the GPUs, most of them out of memory.
Their lines were not kept, and their prompts were repeated if a claim or 200 answers need them.
"""

import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.multiprocessing import get_context

from bench.accuracy.pipelines import HALF, LOW, pipelines
from bench.speed.inputs import lengths as parse_lengths
from sparsekit import Pipeline
from sparsekit.commands.loading import Loaded, load
from sparsekit.commands.options import EMBEDDED
from sparsekit.evaluation.case import Source
from sparsekit.evaluation.comparison import Prompts, compare
from sparsekit.evaluation.records import Records
from sparsekit.evaluation.words import Words
from sparsekit.testbed import read_text
from sparsekit.testbed.source import Bytes

console = Console(stderr=True, width=120)


class Late(Exception):
    """Raised when the time is over."""


def main(
    model: Annotated[str, typer.Option(help="Folder or .gguf file of a model, or embedded")] = EMBEDDED,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    lengths: Annotated[str, typer.Option(help='Tokens, or bytes of the embedded model, such as "32K,128K"')] = "4K",
    each: Annotated[int, typer.Option(help="Prompts of a task at a length", min=1)] = 8,
    tasks: Annotated[str, typer.Option(help="Separated by commas; default: those that claims need")] = "",
    only: Annotated[str, typer.Option(help='Names of pipelines, or parts of names, separated by ";"')] = "",
    low: Annotated[
        str,
        typer.Option(
            help='Layers of least drift, such as "1-2,4-5", from sparsekit profile; without them the papers\' '
            "settings that need them are left out, unless the model is the embedded one"
        ),
    ] = "",
    half: Annotated[str, typer.Option(help='First half of the layers, such as "0-11"; as for --low')] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first prompt of each task")] = 0,
    file: Annotated[Path | None, typer.Option(help="Text to hide facts in; default: Python's library")] = None,
    packages: Annotated[str, typer.Option(help="Or the source of these installed packages, separated by commas")] = "",
    processes: Annotated[int, typer.Option(help="Processes that run at a time", min=1)] = 1,
    timed: Annotated[int, typer.Option(help="Prompts to time; 0: none", min=0)] = 2,
    seconds: Annotated[float, typer.Option(help="Start no prompt after this many seconds", min=1)] = 540,
    out: Annotated[Path, typer.Option(help="File of records")] = Path("front.jsonl"),
    commit: Annotated[str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="Git revision to record")] = None,
) -> None:
    """Evaluate a model under many pipelines; it reads as many following texts as it answers prompts of each task."""
    deadline = time.time() + seconds
    words = [word.strip() for word in only.split(";") if word.strip()]
    sizes = parse_lengths(lengths)
    shares = [range(first, seed + each, processes) for first in range(seed, min(seed + processes, seed + each))]
    text = source_of(packages.split(",")) if packages else read_text(file)
    parts = [out.with_name(f".{out.name}.{number}") for number in range(len(shares))]
    records = Records(out)
    for part in parts:
        if part.exists():  # left by a run that was cut off
            _take(records, part)
    named = [name.strip() for name in tasks.split(",") if name.strip()]
    layers = [part.strip() for part in low.split(",") if part.strip()] or (list(LOW) if model == EMBEDDED else [])
    half = half or (HALF if model == EMBEDDED else "")
    asked = dict(model=model, words=words, low=layers, half=half, tasks=named, sizes=sizes, text=text, commit=commit)
    if timed:
        loaded = load(model, device)
        for size in sizes:
            source = cases(loaded, text)
            prompts = Prompts(source, asked_of(source, named)[:timed], [size], 1, seed=seed)
            how: dict[str, Any] = dict(name=loaded.name, timed=timed, commit=commit)
            compare(loaded.model, chosen(words, layers, half), prompts, records, **how)
        del loaded
    context = get_context("spawn")
    where = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if device == "cuda" else [device]
    running = []
    for number, (share, part) in enumerate(zip(shares, parts, strict=True)):
        part.write_bytes(out.read_bytes() if out.exists() else b"")
        how = asked | {"device": where[number % len(where)], "deadline": deadline}
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
    model: str,
    device: str,
    words: list[str],
    low: list[str],
    half: str,
    tasks: list[str],
    sizes: list[int],
    text: bytes,
    commit: str | None,
    deadline: float,
) -> None:
    """Run one process: one seed after another, so that a deadline cuts off prompts, not pipelines."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # Triton launches on the current one
    loaded, records, ways = load(model, device), Records(part), chosen(words, low, half)
    source = cases(loaded, text)

    def on_step(*_: Any) -> None:
        if time.time() > deadline:
            raise Late

    try:
        for seed in share:
            for size in sizes:
                prompts = Prompts(source, asked_of(source, tasks), [size], 1, texts=1, seed=seed)
                how: dict[str, Any] = dict(name=loaded.name, timed=0, commit=commit, on_step=on_step)
                compare(loaded.model, ways, prompts, records, **how)
    except Late:
        pass


def asked_of(source: Source, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the named tasks, or those that claims need."""
    return tuple(tasks) or source.groups["claimed"]


def cases(loaded: Loaded, text: bytes) -> Source:
    """Return the source of prompts, in bytes for the embedded model, in words for any other."""
    return Bytes(text) if loaded.words is None else Words(loaded.words, text)


def source_of(packages: Iterable[str]) -> bytes:
    """Return the Python source of installed packages, files in the order of their names."""
    files = {
        file.as_posix(): Path(str(file.locate()))
        for package in packages
        for file in metadata.files(package.strip()) or ()
        if file.suffix == ".py" and ".." not in file.parts
    }
    return b"".join(files[name].read_bytes() for name in sorted(files))


def chosen(words: list[str], low: list[str], half: str) -> dict[str, Any]:
    """Return the pipelines of these names; a word that is no name selects all names that contain it; no words, all.

    Raises ValueError for a word that selects no pipeline.
    """
    known = pipelines(low, half)
    parts = [word for word in words if word not in known]
    for word in parts:
        if not any(word in name for name in known):
            raise ValueError(f"only: got {word!r}; allowed are parts of names of pipelines: name some of {list(known)}")
    picked = lambda name: not words or name in words or any(part in name for part in parts)  # noqa: E731
    named = {name: how for name, how in known.items() if picked(name)}
    return {name: Pipeline.from_spec(how) if isinstance(how, str) else how for name, how in named.items()}


def _take(records: Records, part: Path) -> None:
    """Move the new lines of a part's file into the records, and delete the file."""
    known = {_key(line) for line in records.lines}
    records.append(*[line for line in Records(part).lines if _key(line) not in known])
    part.unlink()


def _key(line: dict[str, Any]) -> tuple:
    return tuple(line.get(name) for name in ("kind", "run", "pipeline", "length", "task", "seed"))


if __name__ == "__main__":
    typer.run(main)
