"""Speed, with the error beside it: python -m bench.speed.run --device cpu

Every contender is checked against float64 on sampled rows before it is timed, and ours is not timed if its error is
more than twice that of plain torch in the same precision. All take turns with every kernel for dense attention, so
that each speed-up is over the fastest dense time of the same run. Each result is appended as one line to the records,
which are committed; cases that could not run are recorded with the reason.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from bench.records import append, path_for, provenance
from bench.speed import dense
from bench.speed.cases import COPY, SUITES, contenders, device_copy
from bench.speed.inputs import INPUTS, SHAPES, lengths
from bench.speed.judge import Judge, measure
from bench.speed.peers.load import PEERS, peer_contenders
from bench.speed.report import summary
from sparsekit import dispatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SLOW = ("reference", "cpu")  # on a GPU; on a CPU "cpu" is the fast one
progress = Console(stderr=True, width=120)


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    suite: Annotated[str, typer.Option(help=f"{', '.join(SUITES)}, or all; several with commas")] = "attend,stages",
    shape: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}; default llama-3.1-8b, on a CPU cpu")] = "",
    tokens: Annotated[str, typer.Option("--lengths", help='Such as "32768,128K"; default 16K on a CPU')] = "",
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}; default bfloat16, on a CPU float32")] = "",
    inputs: Annotated[
        str, typer.Option(help="structured: seeded; model: a layer of the embedded model")
    ] = "structured",
    repeats: Annotated[int, typer.Option(help="Timed turns, at least 3; default 10, on a CPU 5")] = 0,
    only: Annotated[str, typer.Option(help="Cases whose name contains this")] = "",
    backends: Annotated[str, typer.Option(help="Backends that attend alone is tried on; default all fast ones")] = "",
    auto: Annotated[str, typer.Option(help='What "auto" tries in this run, in order; default as shipped')] = "",
    yardsticks: Annotated[str, typer.Option("--dense", help="Dense kernels to take turns with, or none")] = "",
    peers: Annotated[Path | None, typer.Option(help="Folder with checkouts of the authors' code")] = None,
    records: Annotated[Path | None, typer.Option(help="File to append to; default bench/records/<chip>.jsonl")] = None,
    commit: Annotated[
        str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="Git revision to record, on a machine without git")
    ] = None,
) -> None:
    """Measure the cases and append to the records."""
    where = torch.device(_named("device", device, ("cpu", "cuda"))[0])
    gpu = where.type == "cuda"
    if gpu and not torch.cuda.is_available():
        raise typer.BadParameter("device: got 'cuda', but torch sees no GPU here: take cpu")
    suites = list(SUITES) if suite == "all" else _named("suite", suite, SUITES)
    chosen = {case.name: case for name in suites for case in SUITES[name] if only in case.name}
    theirs = PEERS if "peers" in suites else ()
    form = SHAPES[_named("shape", shape or ("llama-3.1-8b" if gpu else "cpu"), SHAPES)[0]]
    precision = _named("dtype", dtype or ("bfloat16" if gpu else "float32"), DTYPES)[0]
    make = INPUTS[_named("inputs", inputs, INPUTS)[0]]
    fast = [name for name in dispatch.BACKENDS if name not in SLOW] if gpu else ["cpu"]
    tried = _named("backends", backends, dispatch.BACKENDS) if backends else fast
    if auto:
        dispatch.AUTO[where.type] = tuple(_named("auto", auto, dispatch.BACKENDS))
    kernels = dense.names(where.type)
    if yardsticks:
        kernels = [] if yardsticks == "none" else _named("dense", yardsticks, kernels)
    repeats = repeats or (10 if gpu else 5)
    if repeats < 3 or not (chosen or theirs):
        raise typer.BadParameter(f"{len(chosen)} cases and {repeats} repeats: at least 1 and 3 are needed")
    try:
        sizes = lengths(tokens or ("16K" if not gpu else "1M" if suites == ["memory"] else "32K,128K"))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    path, origin, refused = records or path_for(where), provenance(where, commit), 0

    for length in sizes:
        progress.print(f"{length:,} tokens, {form.name}, {precision}, {inputs} inputs", highlight=False)
        p = make(length, form, DTYPES[precision], where)
        judge = Judge(p, lambda text: progress.print(text, markup=False, highlight=False))
        for name in kernels:
            judge.consider("dense", name, "dense", partial(dense.contenders, name, p))
        for case in chosen.values():
            judge.consider(case.name, "auto", "ours", partial(contenders, case, p, tried))
        if gpu:
            judge.consider(COPY, "torch", "peer", partial(device_copy, p))
        for name in theirs:
            judge.consider(name, "authors", "peer", partial(peer_contenders, name, peers, p, only))
        common = origin | {
            "shape": {"name": form.name, "B": 1, "H": form.H, "G": form.G, "D": form.D},
            "length": length,
            "dtype": precision,
            "inputs": inputs,
            "auto": dispatch.AUTO[where.type],
        }
        lines = [common | line for line in (*measure(p, judge.judged, repeats, _turns), *judge.lost)]
        append(path, lines)
        refused += sum("refused" in line for line in lines)
        Console(width=140).print(summary(lines))
        del p, judge  # the next length needs the room
    if refused:
        progress.print(f"{refused} refused: see above")
        raise typer.Exit(1)


def _turns(turns: Iterable[int]) -> Iterable[int]:
    return track(turns, "turns", console=progress)


def _named(option: str, text: str, allowed: Iterable[str]) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in allowed]:
        raise typer.BadParameter(f"{option}: got {unknown[0]!r}; allowed are {', '.join(allowed)}: name one of those")
    return words


if __name__ == "__main__":
    typer.run(main)
