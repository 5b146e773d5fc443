"""The time of a call, kernel by kernel: python -m bench.speed.kernels --lengths 8K,128K

Each page also gives the time of the GPU, the time of the host to launch the kernels, the time of a call alone that
begins on an idle device, and the time per call of many in a row, where the host runs ahead as it does in a model. If a
call alone takes much longer than the GPU, the host is too slow. The host's launches are counted, a CUDA graph as one;
beside them stands the time of so many of torch's smallest calls on this host. Dense attention comes first, for
comparison. All take turns, because a GPU that was just busy is slower.
The result is a text file beside the records. The kernels' times are the profiler's: compare them with each other, and
take speed-ups from bench.speed.run.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.records import path_for, provenance
from bench.speed import dense
from bench.speed.cases import SUITES, Case, contenders
from bench.speed.contender import Contender
from bench.speed.inputs import INPUTS, SHAPES, lengths
from sparsekit import Problem
from sparsekit.files import write_whole

CALLS, LEAST_US = 5, 3.0  # profiled calls; kernels that take less time per call are summed up
TURNS, ROW = 21, 20  # turns, each with one call alone; calls in a row, in every third turn
FASTEST = "FlashAttention-4"
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")  # how calls begin


@dataclass
class Times:
    """The times of a call, in ms."""

    alone: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    in_a_row: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        alone, host, in_a_row = map(statistics.median, (self.alone, self.host, self.in_a_row))
        return f"{host:.3f} ms of the host; {alone:.3f} ms alone, {in_a_row:.3f} ms in a row"


def main(
    tokens: Annotated[str, typer.Option("--lengths", help='Such as "8K,128K"')] = "128K",
    suite: Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}")] = "stages",
    only: Annotated[str, typer.Option(help="Cases whose name contains this")] = "",
    inputs: Annotated[str, typer.Option(help=f"One of {', '.join(INPUTS)}")] = "structured",
    yardsticks: Annotated[str, typer.Option("--dense", help=f"Of {', '.join(dense.KERNELS)}, with commas")] = FASTEST,
    out: Annotated[Path | None, typer.Option(help="File to write; default bench/records/<chip>-kernels.txt")] = None,
    commit: Annotated[str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="Git revision to record")] = None,
) -> None:
    """Profile the pipelines of a suite on this GPU, Llama-3.1-8B's shape, bfloat16."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: there are no kernels to look at")
    device = torch.device("cuda")
    origin = provenance(device, commit)
    path = out or path_for(device).with_name(f"{path_for(device).stem}-kernels.txt")
    pages = [f"{origin['gpu']}, torch {torch.__version__}, commit {origin['commit']}, {inputs} inputs, per call"]
    for length in lengths(tokens):
        p = INPUTS[inputs](length, SHAPES["llama-3.1-8b"], torch.bfloat16, device)
        them = [one for name in yardsticks.split(",") for one in dense.contenders(name.strip(), p)]
        them += _chosen(SUITES[suite], only, p)
        for contender, times in zip(them, timed(them), strict=True):
            pages.append(page(contender, length, times))
            typer.echo(pages[-1].splitlines()[0])
        del p, them
    write_whole(path, "\n\n".join(pages) + "\n")


def _chosen(cases: Iterable[Case], only: str, p: Problem) -> Iterator[Contender]:
    for case in cases:
        if case.spec and only in case.name:
            yield from contenders(case, p, [])


def timed(contenders: Sequence[Contender]) -> list[Times]:
    """Return the times of each contender, in the same order; each turn begins with another contender."""
    found = [Times() for _ in contenders]
    them = list(zip(contenders, found, strict=True))
    for one in contenders:
        one.run(nullcontext)
    for turn in range(TURNS):
        first = turn % len(them)
        for contender, times in (*them[first:], *them[:first]):
            started = _idle()
            contender.run(nullcontext)
            times.host.append((time.perf_counter() - started) * 1e3)
            times.alone.append((_idle() - started) * 1e3)
            if turn % 3 == 0:
                started = _idle()
                for _ in range(ROW):
                    contender.run(nullcontext)
                times.in_a_row.append((_idle() - started) * 1e3 / ROW)
    return found


def _idle() -> float:
    """Wait until the device is idle and return that moment in s."""
    torch.cuda.synchronize()
    return time.perf_counter()


def bare(launches: float) -> float:
    """Return the host's ms for so many of torch's smallest calls: each sets one number to zero."""
    one, each = torch.zeros(1, device="cuda"), []
    for _ in range(TURNS):
        started = _idle()
        for _ in range(ROW):
            one.zero_()
        each.append((time.perf_counter() - started) * 1e3 / ROW)
    return statistics.median(each) * launches


def page(contender: Contender, length: int, times: Times) -> str:
    """Return the page of one case: a line about the whole call, then its kernels, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(CALLS):
            contender.run(nullcontext)
        torch.cuda.synchronize()
    found = [e for e in seen.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    kernels = sorted(((e.self_device_time_total / CALLS, e.count / CALLS, e.key) for e in found), reverse=True)
    kernels = [(us, n, name) for us, n, name in kernels if name != "Activity Buffer Request"]
    calls = [e.count for e in seen.key_averages() if e.device_type == DeviceType.CPU and e.key.startswith(LAUNCHES)]
    launches = sum(calls) / CALLS
    lines = [
        f"{contender.case}, {contender.backend}, {length // 1024}K: "
        f"{sum(us for us, _, _ in kernels) / 1e3:.2f} ms on the GPU in {sum(n for _, n, _ in kernels):.0f} kernels; "
        f"{times}; {launches:.0f} launches by the host, so many of the smallest calls take {bare(launches):.3f} ms"
    ]
    lines += [f"{us:10.1f} us {n:5.1f} x  {name[:90]}" for us, n, name in kernels if us >= LEAST_US]
    few = [(us, n) for us, n, _ in kernels if us < LEAST_US]
    lines += [f"{sum(us for us, _ in few):10.1f} us {sum(n for _, n in few):5.1f} x  others"]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
