"""What attention and the stages cost on a device: as bench/records say, or as `sparsekit backends --measure` found.

What a user measures is kept in a file in the user's cache folder, by device and by the versions of torch and
sparsekit, and read when a pipeline first decides there. Nothing is measured unasked.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from platformdirs import user_cache_path

from .chip import chip
from .dispatch import capability
from .problem import Problem
from .timing import now_ms

LOG = logging.getLogger("sparsekit")
FOLDER = "SPARSEKIT_CACHE"  # environment variable: another folder than the user's cache
REPEATS = 5


@dataclass(frozen=True)
class Price:
    """What a step costs."""

    call: float  # ms
    token: float  # ms for a million keys x query heads

    def ms(self, problem: Problem) -> float:
        B, H = problem.q.shape[:2]
        return max(self.call, self.token * B * H * problem.k.shape[2] / 1e6)


@dataclass(frozen=True)
class Prices:
    """Of one kind of device: dense attention, and stages by their names."""

    rate: float  # TFLOP/s of dense attention
    stages: dict[str, Price]


# by compute capability, from bench/records; BlockThreshold's is from what recipes took beyond their part of the dense
# time in the record of the 0.5B model
MEASURED = {
    (9, 0): Prices(
        700.0,
        {"TokenCoverage": Price(2.0, 0.6), "FlexPrefill": Price(3.7, 1.3), "BlockThreshold, mean": Price(0.4, 2.0)},
    )
}


@dataclass(frozen=True)
class Shape:
    """Of the problems that are timed."""

    H: int
    G: int
    D: int
    dtype: torch.dtype
    lengths: tuple[int, int]  # the price of a call is that of the first, the price of a token that of the second


ON_GPU = Shape(16, 4, 128, torch.bfloat16, (2048, 16384))
ON_CPU = Shape(2, 1, 64, torch.float32, (1024, 4096))


def prices(device: torch.device) -> Prices | None:
    """What steps cost on a device: as the user measured it, or as the records say; None if nobody has."""
    if found := _kept(device):
        return found
    return MEASURED.get(capability(device)) if device.type == "cuda" else None


def price_name(stage: object) -> str:
    """Return the name of what a stage does; how its queries score is another amount of work."""
    queries = getattr(stage, "queries", None)
    return f"{type(stage).__name__}, {queries}" if queries else type(stage).__name__


def measure(
    device: torch.device, shape: Shape | None = None, on_step: Callable[[str], None] = lambda name: None
) -> Prices:
    """Time dense attention and each built-in stage on a device: some seconds.

    The price of a stage is all that a call takes beyond its part of the dense time, by the pairs that it computes.
    """
    from .pipeline import Pipeline

    at = shape or (ON_GPU if device.type == "cuda" else ON_CPU)
    problems = [_problem(at, length, device) for length in at.lengths]
    on_step("dense")
    dense = [_ms(Pipeline(), p) for p in problems]
    found = {}
    for stage in _stages():
        on_step(price_name(stage))
        pipeline = Pipeline([stage], break_even=0)
        over = [_ms(pipeline, p) - pipeline.decide(p).density(p) * ms for p, ms in zip(problems, dense, strict=True)]
        call, long = (max(ms, 0.0) for ms in over)
        found[price_name(stage)] = Price(call, long * 1e6 / (at.H * at.lengths[1]))
    H, L, D = at.H, at.lengths[1], at.D
    return Prices(2 * H * L * L * D / dense[1] / 1e9, found)  # half of the pairs, q k and p v


def keep(device: torch.device, found: Prices) -> Path:
    """Write what was measured on a device into the user's cache folder; return the file."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(_read(path) | {_key(device): asdict(found)}, indent=1) + "\n")
    unfinished.replace(path)
    _kept.cache_clear()
    return path


def cache_file() -> Path:
    """Return where measured prices are kept."""
    folder = os.environ.get(FOLDER)
    return (Path(folder) if folder else user_cache_path("sparsekit")) / "prices.json"


@cache  # a file is read once, not with every call
def _kept(device: torch.device) -> Prices | None:
    found = _read(cache_file()).get(_key(device))
    if found is None:
        return None
    return Prices(found["rate"], {name: Price(**price) for name, price in found["stages"].items()})


def _read(path: Path) -> dict:
    """Return what a file holds; nothing, said once, where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOG.warning("%s cannot be read (%s): run sparsekit backends --measure", path, error)
        return {}


def _key(device: torch.device) -> str:
    return f"{chip(device)}, torch {torch.__version__}, sparsekit {version('sparsekit')}"


def _stages() -> Iterator[object]:
    """Yield each built-in stage, set so that it has something to choose."""
    from .stages import BlockThreshold, BlockTopK, FlexPrefill, Streaming, TokenCoverage

    yield TokenCoverage(tau=0.1, min_tokens=0)
    yield FlexPrefill()
    yield BlockTopK()
    yield Streaming(sinks=128, window=256)
    yield BlockThreshold(alpha=0.01, window=256)
    yield BlockThreshold(alpha=0.01, window=256, queries="mean")


def _problem(shape: Shape, length: int, device: torch.device) -> Problem:
    """Return random tokens with a topic for each block of 128, so that some blocks matter to others."""
    g = torch.Generator().manual_seed(0)
    rand = lambda heads, n: torch.randn(1, heads, n, shape.D, generator=g)  # noqa: E731
    topic = rand(1, length // 128)
    q, k, v = rand(shape.H, length), rand(shape.G, length), rand(shape.G, length)
    q, k = q + topic.roll(7, 2).repeat_interleave(128, 2), k + topic.repeat_interleave(128, 2)
    q, k, v = (x.to(device, shape.dtype) for x in (q, k, v))
    return Problem.of(q, k, v)


def _ms(pipeline: Callable[..., object], p: Problem) -> float:
    """Return the median time of a call, in ms, once it is compiled and recorded."""
    times = []
    for _ in range(3):
        pipeline(p.q, p.k, p.v)
    for _ in range(REPEATS):
        start = now_ms(p.q.device)
        pipeline(p.q, p.k, p.v)
        times.append(now_ms(p.q.device) - start)
    return median(times)
