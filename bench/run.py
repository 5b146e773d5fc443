"""How fast, with the error beside it: python bench/run.py --device cpu

Every case is checked against float64 on sampled rows before it is timed, and not timed if its error is more than
twice that of plain torch in the same precision. The cases take turns with torch's dense SDPA, so that every speed-up
is over the dense time of the same run. One line a case is appended to the records, which are committed.
"""

import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from bench.cases import CASES, Case, problem
from sparsekit import Pipeline, Plan, Problem, attend, dispatch, oracle
from sparsekit.problem import to_heads
from sparsekit.timing import now_ms

ROOT = Path(__file__).parent.parent
ROWS = 64  # query rows the error is measured on
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    length: Annotated[int, typer.Option(help="Tokens")] = 16384,
    heads: Annotated[int, typer.Option(help="Query heads")] = 8,
    groups: Annotated[int, typer.Option(help="Key/value heads, a divisor of heads")] = 8,
    head_dim: Annotated[int, typer.Option(help="Head dimension")] = 64,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    repeats: Annotated[int, typer.Option(help="Timed turns, at least 3")] = 5,
    only: Annotated[str, typer.Option(help="Cases whose name has this in it")] = "",
    records: Annotated[
        Path | None, typer.Option(help="File to append to; default bench/records/<device>.jsonl")
    ] = None,
) -> None:
    """Measure the cases and append to the records."""
    where = torch.device(device)
    records = records or ROOT / "bench" / "records" / f"{device}.jsonl"
    p = problem(length, heads, groups, head_dim, DTYPES[dtype], where)
    rows = torch.linspace(0, length - 1, ROWS, device=where).round().long()
    chosen = [case for case in CASES if only in case.name]
    if not chosen or repeats < 3:
        raise typer.BadParameter(f"{len(chosen)} cases and {repeats} repeats: at least 1 and 3 are needed")

    def dense() -> Any:
        return scaled_dot_product_attention(p.q, p.k, p.v, is_causal=True, enable_gqa=heads != groups)

    plans = {case.name: case.decide(p) for case in chosen}
    errors = {case.name: check(case, p, plans[case.name], rows) for case in chosen}
    runs: dict[str, Callable[[], Any]] = {"dense": dense}
    runs |= {case.name: call(case, p, plans[case.name]) for case in chosen}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in track(range(repeats + 1), "turns", console=Console(stderr=True)):
        for name, run in runs.items():
            began = now_ms(where)
            run()
            if turn:  # the first is a warm-up
                times[name].append(now_ms(where) - began)

    dense_ms = statistics.median(times["dense"])
    table = Table("case", title=f"{length:,} tokens, {heads} heads of {head_dim}, {dtype}: dense {dense_ms:,.0f} ms")
    for column in ("kept", "density", "ms", "speed-up", "of 1/density", "error", "plain torch"):
        table.add_column(column, justify="right")
    lines = []
    for case in chosen:
        plan = plans[case.name]
        p20, p50, p80 = percentiles(times[case.name])
        density, kept = plan.density(p), plan.kept(p)
        error, plain = errors[case.name]
        record = {
            "case": case.name,
            "what": case.spec or "attend",
            "backend": dispatch.choose("attend", where.type, p, plan),
            "shape": {"B": 1, "H": heads, "G": groups, "L": length, "D": head_dim},
            "dtype": dtype,
            "density": round(density, 5),
            "kept": round(kept, 5),
            "ms": {"p20": p20, "p50": p50, "p80": p80},
            "error": error,
            "plain_torch_error": plain,
            "dense_ms": dict(zip(("p20", "p50", "p80"), percentiles(times["dense"]), strict=True)),
            "dense": "torch SDPA",
            "speed_up": round(dense_ms / p50, 3),
            **provenance(where),
        }
        lines.append(json.dumps(record))
        speed = dense_ms / p50
        table.add_row(
            case.name, f"{kept:.3f}", f"{density:.3f}", f"{p50:,.0f}", f"{speed:.2f}x", f"{speed * density:.0%}",
            f"{error:.1e}", f"{plain:.1e}",
        )  # fmt: skip
    records.parent.mkdir(parents=True, exist_ok=True)
    before = records.read_text() if records.exists() else ""
    unfinished = records.with_suffix(".new")
    unfinished.write_text(before + "".join(f"{line}\n" for line in lines))
    unfinished.replace(records)
    Console(width=120).print(table)


def call(case: Case, p: Problem, plan: Plan) -> Callable[[], Any]:
    if case.spec is None:
        return lambda: attend(p, plan)
    pipeline = Pipeline.from_spec(case.spec)
    return lambda: pipeline(p.q, p.k, p.v)


def check(case: Case, p: Problem, plan: Plan, rows: torch.Tensor) -> tuple[float, float]:
    """The error on the rows and that of plain torch; raises ValueError if ours is more than twice as large."""
    truth = oracle(p, plan, rows).o
    H = p.q.shape[1]
    scores = (p.q[:, :, rows] @ to_heads(p.k, H).mT * p.scale).masked_fill(~plan.pairs(p, rows), float("-inf"))
    plain = scores.softmax(-1).nan_to_num(0.0) @ to_heads(p.v, H)
    errors = [((x.double() - truth).norm() / truth.norm()).item() for x in (attend(p, plan).o[:, :, rows], plain)]
    if not errors[0] <= 2 * errors[1]:
        raise ValueError(f"{case.name}: error {errors[0]:.2e}, plain torch {errors[1]:.2e}: wrong, so not timed")
    return errors[0], errors[1]


def percentiles(ms: list[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(ms, n=5, method="inclusive")
    return round(fifths[0], 2), round(statistics.median(ms), 2), round(fifths[3], 2)


def provenance(where: torch.device) -> dict[str, Any]:
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    chip = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpu()}, {torch.get_num_threads()} threads"
    return {
        "device": chip,
        "versions": {
            "sparsekit": version("sparsekit"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": git("rev-parse", "HEAD"),
        "clean": not git("status", "--porcelain", "--untracked-files=no"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    typer.run(main)
