"""Tries every lead on the same prompts: python -m bench.leads.run --device cuda --lengths 32K --out leads.jsonl

Prompt by prompt, all variants on each, so a deadline cuts prompts and not variants, and every difference is of pairs.
Seeds are those for tuning, apart from any that results are reported on. A line of the output is one variant on one
prompt; lines that are there already are not run again. The first prompts are watched: what each layer kept, computed
and took; watching waits for the device after each layer.
"""

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from bench.inputs import lengths as parse_lengths
from bench.leads.judge import ALL, SEARCH, Seen, judge, read, samples
from bench.leads.variants import Setting, Variant, variants
from bench.records import Record, provenance
from sparsekit.integrations.transformers import sparsify
from sparsekit.schedules import DENSE, Measured, calibrate, profile_layers
from sparsekit.testbed import TASKS, Sample, load_model, read_text

FIRST_SEED, CALIBRATION_SEED = 1_000_000, 2_000_000  # reported results have seeds from 0 on
WATCHED = 2  # prompts of each task
Key = tuple[str, int, str, int]  # variant, length, task, seed
console = Console(stderr=True, width=120)


@dataclass
class Calibration:
    """What single layers do with a spec, measured once for each spec on prompts of their own."""

    model: Any
    prompts: list[list[int]]
    found: dict[str, list[Measured]] = field(default_factory=dict)

    def measured(self, specs: Sequence[str]) -> list[Measured]:
        """Of these specs and of dense attention, in every layer."""
        if missing := [spec for spec in specs if spec not in self.found]:
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task("calibration")
                step = lambda done, total, _: progress.update(bar, completed=done, total=total)  # noqa: E731
                for one in calibrate(self.model, self.prompts, missing, on_step=step).measured:
                    mine = self.found.setdefault(one.pipeline, [])
                    if len({m.layer for m in mine} | {one.layer}) > len(mine):
                        mine.append(one)
        return [one for spec in (DENSE, *specs) for one in self.found[spec]]


def prompts_of(text: bytes, length: int, n: int = 2) -> list[list[int]]:
    """To calibrate on: of the tasks in turn."""
    tasks = list(TASKS)
    made = (samples(text, tasks[i % len(tasks)], length, CALIBRATION_SEED + i) for i in range(n))
    return [list(sample.prompt) for sample in made]


def done(path: Path) -> set[Key]:
    """What a file has already."""
    if not path.exists():
        return set()
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["variant"], line["length"], line["task"], line["seed"]) for line in lines if "error" not in line}


def one(model: Any, variant: Variant, sample: Sample, setting: Setting, watched: bool) -> Record:
    """The figures of a variant on a prompt."""
    seen = Seen()
    pipeline = variant.make(setting)

    def how() -> AbstractContextManager[Any]:
        if pipeline is None and not watched:
            return nullcontext()
        return sparsify(model, "dense" if pipeline is None else pipeline, watch=seen.watch if watched else None)

    score, bits = judge(model, sample, how)
    figures: Record = {"answers": score.answers, "found": score.found, "right": score.right, "digits": score.digits}
    return figures | {"bits": round(bits, 5)} | (seen.line() if watched else {})


def search(
    model: Any,
    chosen: Sequence[Variant],
    jobs: Iterable[tuple[int, int, str]],
    setting: Callable[[int, bytes], Setting],
    write: Callable[[Record], None],
    skip: set[Key],
    deadline: float,
) -> dict[str, str]:
    """Runs what is not to be skipped until the deadline; by variant and length, why one was given up."""
    text, jobs = read_text(), list(jobs)
    lost: dict[str, str] = {}
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        task_bar = bar.add_task("prompts", total=len(jobs))
        for length, round_, task in jobs:
            seed = FIRST_SEED + round_
            sample = samples(text, task, length, seed)
            given = setting(length, read(sample))
            for variant in chosen:
                key, where = (variant.name, length, task, seed), f"{variant.name} at {length}"
                if time.monotonic() > deadline:
                    return lost
                if key in skip or where in lost:
                    continue
                line: Record = {"lead": variant.lead, "variant": variant.name, "length": length, "task": task}
                line["seed"] = seed
                try:
                    line |= one(model, variant, sample, given, watched=round_ < WATCHED)
                except Exception as error:  # one that breaks must not cost the others their time on a borrowed GPU
                    traceback.print_exc()
                    lost[where] = f"{type(error).__name__}: {error}"
                    line["error"] = lost[where][:500]
                    if model.device.type == "cuda":
                        torch.cuda.empty_cache()
                write(line)
            bar.advance(task_bar)
    return lost


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    lengths: Annotated[str, typer.Option(help='Bytes, such as "32K,128K"')] = "4K",
    prompts: Annotated[int, typer.Option(help="Of each task at each length", min=1)] = 8,
    seconds: Annotated[float, typer.Option(help="Start nothing after these", min=1)] = 540,
    out: Annotated[Path, typer.Option(help="File of lines to append to; what it has is not run again")] = Path(
        "leads.jsonl"
    ),
    only: Annotated[
        str, typer.Option(help='Variants whose lead or name has one of these in it, split at ";"; the base always runs')
    ] = "",
    without_base: Annotated[bool, typer.Option(help="Of the base only dense attention")] = False,
    tasks: Annotated[str, typer.Option(help=f"Of {', '.join(ALL)}; default {', '.join(SEARCH)}")] = "",
    min_tokens: Annotated[int, typer.Option(help="Least tokens kept besides the window", min=0)] = 1024,
    commit: Annotated[
        str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="What git describe says, for a machine without git")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Print the variants and stop")] = False,
) -> None:
    """Try leads on a model that retrieves; float32 on a CPU, bfloat16 on a GPU."""
    began = time.monotonic()
    words = [word.strip() for word in only.split(";") if word.strip()]
    hit = lambda v: any(word in f"{v.lead} | {v.name}" for word in words)  # noqa: E731
    base = lambda v: v.lead.startswith("0 ") and (v.name == "dense" or not without_base)  # noqa: E731
    chosen = [v for v in variants() if not words or hit(v) or base(v)]
    if show:
        for variant in chosen:
            print(f"{variant.lead} | {variant.name}")
        return
    named = [name.strip() for name in tasks.split(",") if name.strip()] or list(SEARCH)
    if wrong := [name for name in named if name not in ALL]:
        raise typer.BadParameter(f"tasks: got {wrong}; allowed are {', '.join(ALL)}: name some of those")
    if words and not any(map(hit, chosen)):
        raise typer.BadParameter(f"only: got {only!r}, which no variant has in it: see --list")
    try:
        sizes = parse_lengths(lengths)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    where = torch.device(device)
    model = load_model(torch.bfloat16 if where.type == "cuda" else torch.float32, where)
    origin = provenance(where, commit)
    text = read_text()
    calibrations = {length: Calibration(model, prompts_of(text, length)) for length in sizes}
    console.print(f"{len(chosen)} variants, lengths {sizes}, tasks {named}", highlight=False)
    common = {key: origin[key] for key in ("run", "gpu", "commit", "clean", "date")}

    @cache
    def low(length: int) -> tuple[int, ...]:
        layers = profile_layers(model, calibrations[length].prompts).layers
        console.print(f"least drift at {length}: layers {layers}", highlight=False)
        return layers

    def setting(length: int, prompt: bytes) -> Setting:
        layers, measured = model.config.num_hidden_layers, calibrations[length].measured
        return Setting(prompt, where, layers, partial(low, length), measured, min_tokens)

    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:

        def write(line: Record) -> None:
            file.write(json.dumps(line | common) + "\n")
            file.flush()

        jobs = [(length, round_, task) for round_ in range(prompts) for length in sizes for task in named]
        lost = search(model, chosen, jobs, setting, write, done(out), began + seconds)
    for name, reason in lost.items():
        console.print(f"{name}: {reason}", markup=False, highlight=False)
    if lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
