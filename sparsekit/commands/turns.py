"""Reads a prompt dense and sparse in turn: how long each takes, and what each layer does."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from ..break_even import why_whole
from ..calibrate import sinks_left_out
from ..layers import numbered
from ..plan import Plan
from ..problem import Problem
from ..report import sampled_rows
from ..sinks import Sinks, measure
from ..timing import now_ms

if TYPE_CHECKING:
    from ..integrations.transformers import LayerCall

WARM_UP = 64  # tokens, on a CPU
TURNS = 3  # timed runs of dense and of sparse, in turn
LONG = 30_000.0  # a first token that takes more ms is timed once
WHOLE = 1 - 1e-6  # least density that means all pairs


@dataclass(frozen=True)
class Timed:
    """One generation with its times."""

    first_ms: float  # until the first token
    rest_ms: float  # from the first token to the last
    tokens: list[int]


@dataclass(frozen=True)
class Layer:
    """What one layer did in the sparse prefill."""

    kept: float = 1.0  # part of the queries, in [0, 1]
    density: float = 1.0  # part of the dense pairs, in [0, 1]
    dense: str | None = None  # why it computed all pairs; None if it did not
    sinks: Sinks | None = None  # attention on the first keys, and the part of it that the plan leaves out


@dataclass(frozen=True)
class Found:
    """The runs of a prompt, dense or sparse, and what each layer did."""

    runs: list[Timed]  # only the first one generates all tokens
    layers: dict[int, Layer]

    @property
    def first_ms(self) -> float:
        return statistics.median(run.first_ms for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the longest time to the first token, in ms."""
        return min(run.first_ms for run in self.runs), max(run.first_ms for run in self.runs)

    @property
    def all_ms(self) -> float:
        return self.first_ms + self.runs[0].rest_ms

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the layers."""
        return statistics.mean(getattr(layer, name) for layer in self.layers.values()) if self.layers else 1.0


def compare(
    model: Any, prompt: list[int], tokens: int, pipeline: Any, on_step: Callable[[int, int, str], None]
) -> tuple[Found, Found]:
    """Generate greedily, dense and sparse in turn, each after a warm-up that is not timed.

    On a GPU the warm-up is the whole prefill, because kernels are compiled for each length; the layers are watched
    there, because watching waits for the device. A CPU compiles nothing and waits for nothing: its warm-up is a few
    tokens, and the layers are watched in a timed run.
    """
    ids = torch.tensor([prompt], device=model.device)
    ways = {"dense": None, "sparse": pipeline}
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    layers: dict[int, Layer] = {}
    for name, how in ways.items():
        on_step(0, 2 * TURNS, f"{name}, warm-up")
        seen = _generate(model, ids if ids.is_cuda else ids[:, :WARM_UP], 1, how, look=ids.is_cuda)[1]
        layers = layers or seen
    for turn in range(TURNS):
        for name, how in ways.items():
            on_step(2 * turn + (name == "sparse"), 2 * TURNS, name)
            timed, seen = _generate(model, ids, 1 if turn else tokens, how, look=not ids.is_cuda and not layers)
            runs[name].append(timed)
            layers = layers or seen
        if any(timed[0].first_ms > LONG for timed in runs.values()):
            break
    return Found(runs["dense"], {}), Found(runs["sparse"], layers)


def _generate(model: Any, ids: torch.Tensor, tokens: int, pipeline: Any, look: bool) -> tuple[Timed, dict[int, Layer]]:
    """Generate greedily, dense if `pipeline` is None. With `look` also return what each layer did."""
    from transformers.generation.streamers import BaseStreamer

    from ..integrations.transformers import sparsify

    times: list[float] = []
    calls: dict[int, tuple[Plan, Problem, Sinks | None]] = {}
    looked = 0.0  # ms that watching took, before the first token

    class Clock(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            times.append(now_ms(model.device))

        def end(self) -> None:
            pass

    def watch(call: "LayerCall") -> None:
        nonlocal looked
        began = now_ms(model.device)
        sinks = measure(call.problem, sampled_rows(call.problem), call.plan)
        q, k, v = (x.new_empty(1).expand(x.shape) for x in (call.problem.q, call.problem.k, call.problem.v))
        short = replace(call.problem, q=q, k=k, v=v)  # only shapes and positions are used from here on
        calls[call.layer] = call.plan, short, sinks
        looked += now_ms(model.device) - began

    handle = sparsify(model, pipeline, watch=watch if look else None) if pipeline is not None else None
    entered: AbstractContextManager = handle or nullcontext()
    with entered:
        began = now_ms(model.device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, streamer=Clock()
        )  # the streamer gets the prompt, then each token
        ended = now_ms(model.device)
    timed = Timed(times[1] - began - looked, ended - times[1], out[0, ids.shape[1] :].tolist())
    return timed, _layers(model, pipeline, calls, handle.dense) if handle and look else {}


def _layers(
    model: Any, pipeline: Any, calls: Mapping[int, tuple[Plan, Problem, Sinks | None]], refused: Mapping[int, str]
) -> dict[int, Layer]:
    """Return what each layer did that was called; `refused` says why some ran dense despite their pipeline."""
    from ..layers import by_layer

    named = range(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    pipelines = by_layer(pipeline, sorted({*named, *calls, *refused}))
    layers = {layer: Layer(dense=reason) for layer, reason in refused.items()}
    for layer, (plan, problem, sinks) in calls.items():
        kept, density = plan.kept(problem), plan.density(problem)
        why = refused.get(layer) or (why_whole(pipelines[layer], problem) if density >= WHOLE else None)
        layers[layer] = Layer(kept, density, why, sinks)
    return dict(sorted(layers.items()))


def what_ran(file: str, layers: Mapping[int, Layer], tokens: int) -> str | None:
    """Return the line that says which layers ran dense and why, or None if no layer did."""
    reasons: dict[str, list[int]] = {}
    for number, layer in layers.items():
        if layer.dense:
            reasons.setdefault(layer.dense, []).append(number)
    if not layers:
        why = "one token alone is decoded, not prefilled" if tokens == 1 else "no layer called its pipeline"
        return f"nothing ran sparse in {file}: {why}"
    if not reasons:
        return None
    each = [f"{numbered(numbers)}: {reason}" for reason, numbers in reasons.items()]
    dense = sum(map(len, reasons.values()))
    if dense < len(layers):
        return f"{dense} of {len(layers)} layers ran dense in {file}: {'; '.join(each)}"
    return f"nothing ran sparse in {file}: {next(iter(reasons)) if len(each) == 1 else '; '.join(each)}"


def sinks(layers: Mapping[int, Layer]) -> str | None:
    """Return the line that warns of sinks that plans leave out, or None if they leave out none."""
    line = sinks_left_out({number: layer.sinks for number, layer in layers.items() if layer.sinks})
    return f"WARNING: {line}" if line else None


def _ran_sparse(sparse: Found) -> bool:
    return any(layer.dense is None for layer in sparse.layers.values())


def _overlap(dense: Found, sparse: Found) -> bool:
    """Return whether the ranges of the times to the first token overlap; one time alone has no range."""
    (low, high), (least, most) = dense.spread, sparse.spread
    return len(dense.runs) > 1 and low <= most and least <= high


def how_sure(dense: Found, sparse: Found) -> str | None:
    """Return the line that says how far to trust the speed-up, or None if there is no reason for doubt."""
    if len(dense.runs) == 1:
        return f"timed once, because the first token took more than {LONG / 1000:g} s: a small difference may be noise"
    if _ran_sparse(sparse) and _overlap(dense, sparse):
        return f"time to the first token: no difference beyond noise (the ranges of {TURNS} runs each overlap)"
    return None


def table(dense: Found, sparse: Found) -> Table:
    """Return the table of times, kept queries and density, a row each for dense and sparse."""
    table = Table(
        "",
        caption=f"first token: median of {len(dense.runs)}; kept: part of the queries, density: part of the pairs, "
        "both mean over layers",
    )
    for name in ("first token ms", "min..max", "speed-up", "all ms", "kept", "density"):
        table.add_column(name, justify="right")
    speed_up = f"{dense.first_ms / sparse.first_ms:.2f}x"
    if not _ran_sparse(sparse):
        speed_up = "-"
    elif _overlap(dense, sparse):
        speed_up = "~"
    for name, result, cell in (("dense", dense, "1.00x"), ("sparse", sparse, speed_up)):
        spread = "..".join(f"{ms:,.0f}" for ms in result.spread)
        figures = f"{result.first_ms:,.0f}", spread, cell, f"{result.all_ms:,.0f}"
        table.add_row(name, *figures, f"{result.mean('kept'):.3f}", f"{result.mean('density'):.3f}")
    return table
