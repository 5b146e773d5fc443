"""Prices: the times of attention and of the stages on a device, from bench/records or from a measurement there.

Where a pipeline of built-in stages needs the prices of a device and there are none, it measures them once, in some
seconds, and logs that (`measured_once`); `sparsekit backends --measure` does so on demand. A file in the user's cache
folder keeps them by device, threads and the versions of torch and sparsekit. With SPARSEKIT_MEASURE=0 in the
environment a pipeline never measures.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from platformdirs import user_cache_path
from torch import Tensor

from . import dispatch, graphs
from .chip import chip
from .dispatch import capability
from .execute import attend, begin
from .files import write_whole
from .fills import SlidingWindow
from .plan import Plan, Tokens
from .policies import Stage
from .problem import Output, Problem, is_abstract
from .timing import now_ms
from .version import version

LOG = logging.getLogger("sparsekit")
FOLDER = "SPARSEKIT_CACHE"  # environment variable: a folder instead of the user's cache
SWITCH = "SPARSEKIT_MEASURE"  # environment variable: with 0 a pipeline never measures
REPEATS = 5
ENOUGH = 250.0  # ms after which a step is not repeated, for busy machines
WARM = {"cpu": 1, "cuda": 3}  # calls before the timed ones: on a GPU they are compiled, watched and recorded as a graph
SPAN = 128  # keys of the window whose price is measured
LEAST = 2048  # keys below which a pipeline does not measure: to score 128 queries is 256 / keys of dense attention


@dataclass(frozen=True)
class Price:
    """The time of a step."""

    call: float  # ms
    token: float  # ms per million keys x query heads

    def ms(self, problem: Problem, kept: float = 1.0) -> float:
        """Return the ms of the step on a problem of which the part `kept` of the tokens is kept."""
        B, H = problem.q.shape[:2]
        return max(self.call, self.token * B * H * kept * problem.k.shape[2] / 1e6)


FREE = Price(0.0, 0.0)


@dataclass(frozen=True)
class Prices:
    """The prices of one kind of device: dense attention, stages by name, and attention by their plans.

    On a GPU the price of a stage is the time of a call beyond its part of the dense time, and `blocks` and `tokens` are
    0. On a CPU it is the time to decide alone.
    """

    rate: float  # TFLOP/s of dense attention
    stages: dict[str, Price]
    slow: float = 1.0  # time of a pair in a block list over that of a pair in dense attention
    blocks: Price = FREE  # attention by block lists, without its pairs
    tokens: Price = FREE  # to gather and scatter tokens
    fill: Price | None = None  # fill of a window of SPAN keys; None: its pairs at the dense rate
    apart: bool = False  # the times to decide and to attend were measured separately


# by compute capability, on an H200: as `measure` returns them. Where the records have the time of whole calls beyond
# their part of the dense time, which is longer, it is that: for TokenCoverage and FlexPrefill from calls in a row, for
# BlockThreshold with its mean query from the layers of the 1.5B model
MEASURED = {
    (9, 0): Prices(
        650.0,
        {
            "TokenCoverage": Price(0.2, 1.42),
            "FlexPrefill": Price(0.28, 1.9),
            "BlockTopK": Price(0.09, 1.1),
            "Streaming": Price(0.03, 0.95),
            "BlockThreshold, each": Price(2.5, 11.0),
            "BlockThreshold, mean": Price(0.26, 2.1),
        },
        fill=Price(0.0, 0.16),
    )
}


@dataclass(frozen=True)
class Shape:
    """The shape of the problems that are timed."""

    H: int
    G: int
    D: int
    dtype: torch.dtype
    lengths: tuple[int, int]  # the first gives the price of a call, the second the price of a token


ON_GPU = Shape(16, 4, 128, torch.bfloat16, (2048, 16384))
ON_CPU = Shape(2, 1, 64, torch.float32, (1024, 4096))


Here = tuple[torch.device, int]  # a device, and the threads of the host
_known: dict[Here, Prices] = {}  # measured by this process
_failed: set[Here] = set()
_lock = threading.Lock()


def _here(device: torch.device) -> Here:
    return device, torch.get_num_threads()


def prices(device: torch.device, alike: bool = False) -> Prices | None:
    """Return the prices measured on a device, or those of the records, or None.

    With `alike` they are those of the records: the same on all ranks, which must decide the same.
    """
    if not alike and (measured := _known.get(_here(device)) or _kept(_here(device))):
        return measured
    return MEASURED.get(capability(device)) if device.type == "cuda" else None


def may_measure(stages: Iterable[object], problem: Problem) -> bool:
    """Return whether a pipeline may now measure the prices of these stages on the problem's device.

    It may not for a custom stage, nor while something is traced, captured or timed, nor on one rank of several.
    """
    q, built_in = problem.q, {type(stage) for stage in _stages()}
    if os.environ.get(SWITCH) == "0" or q.device.type not in ("cpu", "cuda") or problem.heads_group is not None:
        return False
    if prices(q.device) is not None:  # the device is measured, so a missing stage has no price
        return False
    if torch.compiler.is_compiling() or is_abstract(q) or dispatch.is_timed():
        return False
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return all(type(stage) in built_in for stage in stages) and _here(q.device) not in _failed


def measured_once(device: torch.device) -> None:
    """Measure, log that, and keep the prices: once for each process, device and number of threads."""
    here = _here(device)
    with _lock:
        _kept.cache_clear()  # another process may have measured
        if here in _known or here in _failed or _kept(here):
            return
        LOG.warning(
            "sparsekit measures once, in some seconds, the times of attention and of the stages on %s, to know when "
            "sparse attention is faster. %s keeps them; %s=0 in the environment turns this off: stages then always run",
            chip(device),
            cache_file(),
            SWITCH,
        )
        # in a thread: grad mode, autocast, default device, modes and clocks of the caller are its own
        results: list[Prices | Exception] = []
        thread = threading.Thread(target=lambda: results.append(_tried(device)), daemon=True)
        thread.start()
        thread.join()
        if not isinstance(results[0], Prices):
            _failed.add(here)
            LOG.warning("sparsekit could not measure: %s. Stages always run", str(results[0]).partition("\n")[0])
            return
        _known[here] = results[0]
        try:
            keep(device, results[0])
        except OSError as error:
            LOG.warning("%s cannot be written (%s): only this process knows the times", cache_file(), error)


def _tried(device: torch.device) -> Prices | Exception:
    try:
        if device.type == "cpu":
            return measure(device)
        with torch.cuda.device(device):  # a thread begins on the first one
            found = measure(device)
        graphs.clear()  # the graphs of this thread would stay, with their memory
        return found
    except Exception as error:  # after any error the call itself may still run
        return error


def price_name(stage: object) -> str:
    """Return the name of a stage's price; its `queries` are in the name, because they change the work."""
    queries = getattr(stage, "queries", None)
    return f"{type(stage).__name__}, {queries}" if queries else type(stage).__name__


def measure(
    device: torch.device, shape: Shape | None = None, on_step: Callable[[str], None] = lambda name: None
) -> Prices:
    """Time dense attention, each built-in stage and attention by their plans on a device, in some seconds."""
    at, apart = shape or (ON_GPU if device.type == "cuda" else ON_CPU), device.type == "cpu"
    problems = [_problem(at, length, device) for length in at.lengths]
    H, L, D = at.H, at.lengths[1], at.D

    def price(over: Iterable[float]) -> Price:
        call, long = (max(ms, 0.0) for ms in over)
        return Price(call, long * 1e6 / (H * L))

    def deciding(stage: Stage) -> Iterator[float]:
        for p, ms in zip(problems, dense, strict=True):
            yield _deciding_ms(stage, p) if apart else _calling_ms(stage, p) - stage(p).density(p) * ms

    on_step("dense")
    dense = [_attending_ms(Plan(), p) for p in problems]
    stages = {}
    for stage in _stages():
        on_step(price_name(stage))
        stages[price_name(stage)] = price(deciding(stage))
    slow, blocks, tokens = 1.0, FREE, FREE
    half = [_half(p) for p in problems]
    bare = [_attending_ms(plan, p) for plan, p in zip(half, problems, strict=True)]
    if apart:
        on_step("blocks")
        few, many = ([_top(keep)(p) for p in problems] for keep in (0.1, 0.75))
        times = [_attending_ms(plan, p) for plan, p in zip(few, problems, strict=True)]
        parts = [plan.density(p) for plan, p in zip(few, problems, strict=True)]
        more = many[1].density(problems[1]) - parts[1]
        slow = max((_attending_ms(many[1], problems[1]) - times[1]) / (more * dense[1]), 1.0)
        blocks = price(t - slow * part * ms for t, part, ms in zip(times, parts, dense, strict=True))
        tokens = price(t - plan.density(p) * ms for t, plan, p, ms in zip(bare, half, problems, dense, strict=True))
    on_step("fill")
    filled = [
        _attending_ms(replace(plan, fill=SlidingWindow(SPAN, 0)), p) for plan, p in zip(half, problems, strict=True)
    ]
    fill = price(t - without for t, without in zip(filled, bare, strict=True))
    rate = 2 * H * L * L * D / dense[1] / 1e9  # half of the pairs, q k and p v
    return Prices(rate, stages, slow, blocks, tokens, fill, apart)


def keep(device: torch.device, found: Prices) -> Path:
    """Write the prices of a device into the user's cache folder; return the file."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(_read(path) | {_key(device): asdict(found)}, indent=1) + "\n")
    _kept.cache_clear()
    _known.pop(_here(device), None)  # the file has newer prices
    return path


def cache_file() -> Path:
    """Return the file that keeps measured prices."""
    folder = os.environ.get(FOLDER)
    return (Path(folder) if folder else user_cache_path("sparsekit")) / "prices.json"


@cache  # read the file once, not in every call
def _kept(here: Here) -> Prices | None:
    found = _read(cache_file()).get(_key(here[0]))
    if found is None or "apart" not in found:  # of an older version
        return None
    price = lambda name: found[name] and Price(**found[name])  # noqa: E731
    stages = {name: Price(**each) for name, each in found["stages"].items()}
    steps = {name: price(name) for name in ("blocks", "tokens", "fill")}
    return Prices(found["rate"], stages, found["slow"], **steps, apart=found["apart"])


def _read(path: Path) -> dict:
    """Return the content of a file; {}, with a warning, if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOG.warning("%s cannot be read (%s): run sparsekit backends --measure", path, error)
        return {}


def _key(device: torch.device) -> str:
    return f"{chip(device)}, torch {torch.__version__}, sparsekit {version()}"


def _stages() -> Iterator[Stage]:
    """Yield each built-in stage, with parameters for which it has something to choose."""
    from .stages import BlockThreshold, BlockTopK, FlexPrefill, Streaming, TokenCoverage

    yield TokenCoverage(tau=0.1, min_tokens=0)
    yield FlexPrefill()
    yield BlockTopK()
    yield Streaming(sinks=128, window=256)
    yield BlockThreshold(alpha=0.01, window=256)
    yield BlockThreshold(alpha=0.01, window=256, queries="mean")


def _problem(shape: Shape, length: int, device: torch.device) -> Problem:
    """Return random tokens with a topic for each block of 128, so that some blocks matter to others."""
    g = torch.Generator("cpu").manual_seed(0)
    rand = lambda heads, n: torch.randn(1, heads, n, shape.D, generator=g, dtype=torch.float32, device="cpu")  # noqa: E731
    topic = rand(1, length // 128)
    q, k, v = rand(shape.H, length), rand(shape.G, length), rand(shape.G, length)
    q, k = q + topic.roll(7, 2).repeat_interleave(128, 2), k + topic.repeat_interleave(128, 2)
    q, k, v = (x.to(device, shape.dtype) for x in (q, k, v))
    return Problem.of(q, k, v)


def _half(p: Problem) -> Plan:
    """Return the plan that keeps every other token."""
    idx = torch.arange(0, p.k.shape[2], 2, dtype=torch.int32, device=p.q.device)
    tokens = Tokens(idx.expand(1, p.q.shape[1], -1).contiguous(), p.k.shape[2], full=True)
    return Plan(tokens, tokens)


def _top(keep: float) -> Stage:
    from .stages import BlockTopK

    return BlockTopK(keep=keep)


def _deciding_ms(stage: Stage, p: Problem) -> float:
    return _ms(lambda: stage(p), p.q.device)


def _calling_ms(stage: Stage, p: Problem) -> float:
    """Return the time of a whole call on a GPU, as a pipeline makes it: as a graph, where there can be one."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor | graphs.Call:
        problem = Problem.of(q, k, v)
        begun = begin(problem, stage(problem), [], "auto", "auto", False, nullcontext)
        return begun.o if isinstance(begun, Output) else lambda *x: begun(replace(problem, q=x[0], k=x[1], v=x[2])).o

    def again(*x: Tensor) -> Tensor:
        left = run(*x)
        return left if isinstance(left, Tensor) else left(*x)

    return _ms(lambda: (graphs.graph_call(("price", stage), run, p.q, p.k, p.v) or again)(p.q, p.k, p.v), p.q.device)


def _attending_ms(plan: Plan, p: Problem) -> float:
    return _ms(lambda: attend(p, plan), p.q.device)


def _ms(call: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call, in ms, once it is compiled and recorded."""
    times = []
    for _ in range(WARM[device.type]):
        call()
    for _ in range(REPEATS):
        start = now_ms(device)
        call()
        times.append(now_ms(device) - start)
        if sum(times) > ENOUGH:
            break
    return median(times)
