"""Our cases: plans computed in advance, of which attend alone is timed, and pipelines, timed with their planning."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bench.speed.contender import Contender
from sparsekit import Blocks, Pipeline, Plan, Problem, SlidingWindow, Tokens, attend, dispatch
from sparsekit.execute import Clock
from sparsekit.recipes import PIPELINES

BLOCK, COPY, PUBLISHED = 128, "device copy", "FlexPrefill, gamma 0.95, as published"
WINDOW = "decompress(fill=sliding_window(128))"
Make = Callable[[Problem], Plan]
Spec = Callable[[int], str]


@dataclass(frozen=True)
class Case:
    """A plan computed in advance (`plan`), of which attend alone is timed, or a pipeline (`spec`), timed as a whole."""

    name: str
    plan: Make | None = None
    spec: Spec | None = None  # for a length in tokens
    compress: str = "auto"
    fills: bool = False  # time only a plan's last step, which fills the rows of dropped queries
    graph: bool = False  # time a plan as a CUDA graph, as short calls of pipelines are: without the host's time
    break_even: Literal["auto"] | int = 0  # of a pipeline; 0 runs its stages even if they cost more than they save


def random_blocks(density: float) -> Make:
    """Make plans of random causal blocks per head, with the first column and the diagonal: about this density."""

    def plan(p: Problem) -> Plan:
        I, H = -(-p.q.shape[2] // BLOCK), p.q.shape[1]
        forced = 2 * I - 1  # of I (I + 1) / 2
        chance = max(0.0, (density * I * (I + 1) / 2 - forced) / max(I * (I + 1) / 2 - forced, 1))
        random = torch.Generator().manual_seed(0)
        mask = torch.rand(1, H, I, I, generator=random) < chance
        mask[..., 0] = True
        mask |= torch.eye(I, dtype=torch.bool)
        return Plan(blocks=Blocks.of(mask.tril().to(p.q.device), (BLOCK, BLOCK)))

    return plan


def random_tokens(kept: float, fill: SlidingWindow | None = None) -> Make:
    """Make plans that keep a random part of the tokens per head, the same for queries and keys."""

    def plan(p: Problem) -> Plan:
        L, H = p.q.shape[2], p.q.shape[1]
        order = torch.rand(1, H, L, generator=torch.Generator().manual_seed(0)).argsort(-1)
        t = Tokens(order[..., : round(kept * L)].sort(-1).values.int().to(p.q.device), L)
        return Plan(t, t, fill=fill)

    return plan


def decided(spec: str) -> Make:
    """Make plans by a pipeline, in advance."""
    return lambda p: Pipeline([Pipeline.from_spec(spec)], break_even=0).decide(p)


def spec(text: str) -> Spec:
    return lambda length: text


def coverage(kept: float, *rest: str) -> Spec:
    """Return TokenCoverage that keeps this part of the tokens: its tau drops all it may, `min_tokens` limits it."""
    return lambda length: " | ".join((f"token_coverage(tau=1.0, min_tokens={least(kept, length)})", *rest))


def least(kept: float, length: int, votes: int = 128) -> int:
    """Return `min_tokens` for a part of the tokens; the voters are kept besides."""
    return max(round(kept * length) - votes, 0)


def sunk(length: int) -> str:
    """Return TokenCoverage as real models need it: many voters, and a window fill with sinks."""
    chosen = f"token_coverage(tau=1.0, voters=512, min_tokens={least(0.15, length, 512)})"
    return f"{chosen} | decompress(fill=sliding_window(512, sinks=16))"


FLEX = {gamma: f"flex_prefill(gamma={gamma}, min_budget=512)" for gamma in (0.9, 0.95)}  # as their README calls it
COVERAGE = Case("TokenCoverage, kept 0.3", spec=coverage(0.3))
FLEX_PREFILL = [Case(f"FlexPrefill, gamma {gamma}", spec=spec(text)) for gamma, text in FLEX.items()]

ATTEND = [
    Case("dense", lambda p: Plan()),
    *(Case(f"blocks, density {d}", random_blocks(d)) for d in (0.02, 0.05, 0.1, 0.2, 0.27, 0.5, 1.0)),
    *(Case(f"tokens, kept {r}", random_tokens(r), compress="gather") for r in (0.1, 0.3, 0.5)),
    *(Case(f"tokens, kept {r}, indexed", random_tokens(r), compress="indexed") for r in (0.1, 0.3, 0.5)),
    Case("tokens, kept 0.3, window fill", random_tokens(0.3, SlidingWindow(128))),
]
STAGES = [
    *(Case(f"TokenCoverage, kept {r}", spec=coverage(r)) for r in (0.1, 0.3, 0.5)),
    Case("TokenCoverage, kept 0.3, window fill", spec=coverage(0.3, WINDOW)),
    Case("TokenCoverage", spec=spec("token_coverage(tau=0.2)")),
    Case("TokenCoverage, window fill", spec=spec(f"token_coverage(tau=0.2) | {WINDOW}")),
    *FLEX_PREFILL,
    Case("BlockThreshold, alpha 0.01", spec=spec('block_threshold(alpha=0.01, queries="mean")')),
    *(Case(f"recipe {name}", spec=spec(name)) for name in PIPELINES),
    Case("stacked", spec=coverage(0.3, FLEX[0.95])),
    Case("stacked, window fill", spec=coverage(0.3, FLEX[0.95], WINDOW)),
    Case("stacked, auto", spec=coverage(0.3, FLEX[0.95]), break_even="auto"),
]
SHORT = [  # where the host and the kernels beside attention decide
    Case("TokenCoverage, kept 0.15, 512 votes, window fill with sinks", spec=sunk),
    COVERAGE,
    Case(PUBLISHED, spec=spec("flex_prefill(gamma=0.95)")),
    Case(f"{PUBLISHED}, attend alone", decided("flex_prefill(gamma=0.95)"), graph=True),
    Case("recipe balanced", spec=spec("balanced")),
]
PEERS = [
    COVERAGE,
    *FLEX_PREFILL,
    *(Case(f"FlexPrefill, gamma {gamma}, attend alone", decided(text)) for gamma, text in FLEX.items()),
]
MEMORY = [
    Case("dense", lambda p: Plan()),
    COVERAGE,
    Case("TokenCoverage, kept 0.3, window fill", spec=coverage(0.3, WINDOW)),
    Case("stacked, window fill", spec=coverage(0.3, FLEX[0.95], WINDOW)),
]
SPECS = ("token_coverage", f"token_coverage | {WINDOW}", "flex_prefill", f"token_coverage | flex_prefill | {WINDOW}",
         "block_topk", 'block_threshold(queries="each")', "streaming", *PIPELINES)  # fmt: skip
AUTO = [Case("dense, as a pipeline", spec=spec("dense"), break_even="auto")]
AUTO += [Case(f"auto: {text}", spec=spec(text), break_even="auto") for text in SPECS]  # never slower than dense
FILLS = [
    Case("fill, window 512", random_tokens(0.15, SlidingWindow(512, sinks=0)), fills=True, graph=True),
    Case("fill, window 512, 16 sinks", random_tokens(0.15, SlidingWindow(512, sinks=16)), fills=True, graph=True),
]
SUITES = {"attend": ATTEND, "stages": STAGES, "short": SHORT, "peers": PEERS, "memory": MEMORY, "auto": AUTO,
          "fill": FILLS}  # fmt: skip


def _call(pipeline: Pipeline, p: Problem, clock: Clock) -> Tensor:
    """Call a pipeline as users do, or, with a clock that is read, step by step."""
    if clock is nullcontext:
        return pipeline(p.q, p.k, p.v)
    return pipeline.output(p.q, p.k, p.v, clock=clock).o


def device_copy(p: Problem) -> list[Contender]:
    """Return a copy of q as a contender: the speed of memory, for the steps that only move rows."""
    room = torch.empty_like(p.q)
    return [Contender(COPY, "torch", "peer", lambda clock: room.copy_(p.q), what=f"{2 * p.q.nbytes} bytes")]


def contenders(case: Case, p: Problem, backends: list[str]) -> Iterator[Contender]:
    """Yield a case ready to run: a plan on each backend, which raises if it cannot; a pipeline chooses its own."""
    if case.spec:
        text = case.spec(p.q.shape[2])
        pipeline = Pipeline([Pipeline.from_spec(text)], break_even=case.break_even)
        plan = pipeline.decide(p)
        asked = plan.compress(p), Plan(blocks=plan.blocks)
        yield Contender(
            case.name,
            dispatch.choose("attend", p.q.device.type, *asked, backend=pipeline.attend.backend),
            "ours",
            partial(_call, pipeline, p),
            plan,
            text,
        )
    if case.plan:
        made = case.plan(p)
        short = attend(made.compress(p)) if case.fills else None
        for name in backends:

            def run(clock: Clock, name: str = name) -> Tensor:
                if short is not None:
                    return dispatch.run("scatter_tokens", p.q.device.type, p, made, short, backend=name).o
                return attend(p, made, compress=case.compress, backend=name, clock=clock).o

            yield Contender(case.name, name, "ours", replayed(run) if case.graph and p.q.is_cuda else run, made)


def replayed(run: Callable[[Clock], Tensor]) -> Callable[[Clock], Tensor]:
    """Return a function that replays `run` as a CUDA graph, which its first call records; every call has one output."""
    held: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []

    def replay(clock: Clock) -> Tensor:
        if not held:
            run(nullcontext)  # compiles what it needs, or raises
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                o = run(nullcontext)
            held.append((graph, o))
        held[0][0].replay()
        return held[0][1]

    return replay
