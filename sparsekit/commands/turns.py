"""A prompt read dense and sparse in turn: how long it took, and what each layer did."""

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
TURNS = 3  # times that dense and sparse are timed, in turn
LONG = 30_000.0  # ms of a first token from which on it is timed once
WHOLE = 1 - 1e-6  # density from which on all pairs were computed


@dataclass(frozen=True)
class Timed:
    """One generation."""

    first_ms: float  # until the first token was there
    rest_ms: float  # from then on until the last one was
    tokens: list[int]


@dataclass(frozen=True)
class Layer:
    """What one layer did in the sparse prefill."""

    kept: float = 1.0  # part of the queries, in [0, 1]
    density: float = 1.0  # part of the dense pairs, in [0, 1]
    dense: str | None = None  # why it computed all of them; None if it did not
    sinks: Sinks | None = None  # attention on the first keys, and what the plan leaves out of it


@dataclass(frozen=True)
class Found:
    """What a model made of a prompt, dense or sparse."""

    runs: list[Timed]  # the first of them generated all tokens
    layers: dict[int, Layer]

    @property
    def first_ms(self) -> float:
        return statistics.median(run.first_ms for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """Of the time to the first token, in ms."""
        return min(run.first_ms for run in self.runs), max(run.first_ms for run in self.runs)

    @property
    def all_ms(self) -> float:
        return self.first_ms + self.runs[0].rest_ms

    def mean(self, name: str) -> float:
        """Return the mean of a layer's figure over the layers."""
        return statistics.mean(getattr(layer, name) for layer in self.layers.values()) if self.layers else 1.0


def compare(
    model: Any, prompt: list[int], tokens: int, pipeline: Any, on_step: Callable[[int, int, str], None]
) -> tuple[Found, Found]:
    """Generate greedily, dense and sparse in turn, each after a warm-up that is not timed.

    On a GPU that is the same prefill, and it is looked at there: kernels are compiled for the lengths they meet, and
    looking waits for the device. A CPU compiles nothing and waits for nothing: a few tokens warm it up.
    """
    ids = torch.tensor([prompt], device=model.device)
    ways = {"dense": None, "sparse": pipeline}
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    layers: dict[int, Layer] = {}
    for name, how in ways.items():
        on_step(0, 2 * TURNS, f"{name}, warm-up")
        seen = _generate(model, ids if ids.is_cuda else ids[:, :WARM_UP], 1, how, look=ids.is_cuda)[1]
        layers = layers or seen
    for turn in range(TURNS):
        for name, how in ways.items():
            on_step(2 * turn + (name == "sparse"), 2 * TURNS, name)
            timed, seen = _generate(model, ids, 1 if turn else tokens, how, look=not ids.is_cuda and not layers)
            found[name].append(timed)
            layers = layers or seen
        if any(runs[0].first_ms > LONG for runs in found.values()):
            break
    return Found(found["dense"], {}), Found(found["sparse"], layers)


def _generate(model: Any, ids: torch.Tensor, tokens: int, pipeline: Any, look: bool) -> tuple[Timed, dict[int, Layer]]:
    """Generate greedily, dense if `pipeline` is None. Returns what each layer did, too, if that is to be looked at."""
    from transformers.generation.streamers import BaseStreamer

    from ..integrations.transformers import sparsify

    times: list[float] = []
    calls: dict[int, tuple[Plan, Problem, Sinks | None]] = {}
    looked = 0.0  # ms that were spent on looking, before the first token

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
        short = replace(call.problem, q=q, k=k, v=v)  # shapes and positions are all that counts from here on
        calls[call.layer] = call.plan, short, sinks
        looked += now_ms(model.device) - began

    handle = sparsify(model, pipeline, watch=watch if look else None) if pipeline is not None else None
    entered: AbstractContextManager = handle or nullcontext()
    with entered:
        began = now_ms(model.device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, streamer=Clock()
        )  # puts the prompt, then each token
        ended = now_ms(model.device)
    timed = Timed(times[1] - began - looked, ended - times[1], out[0, ids.shape[1] :].tolist())
    return timed, _layers(model, pipeline, calls, handle.dense) if handle and look else {}


def _layers(
    model: Any, pipeline: Any, calls: Mapping[int, tuple[Plan, Problem, Sinks | None]], refused: Mapping[int, str]
) -> dict[int, Layer]:
    """Return what each layer did that was called; `refused` says why some ran dense in spite of their pipeline."""
    from ..layers import by_layer

    named = range(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    pipelines = by_layer(pipeline, sorted({*named, *calls, *refused}))
    found = {layer: Layer(dense=reason) for layer, reason in refused.items()}
    for layer, (plan, problem, sinks) in calls.items():
        kept, density = plan.kept(problem), plan.density(problem)
        why = refused.get(layer) or (why_whole(pipelines[layer], problem) if density >= WHOLE else None)
        found[layer] = Layer(kept, density, why, sinks)
    return dict(sorted(found.items()))


def what_ran(file: str, layers: Mapping[int, Layer], tokens: int) -> str | None:
    """Return the line that says which layers ran dense and why; None if none did."""
    reasons: dict[str, list[int]] = {}
    for number, layer in layers.items():
        if layer.dense:
            reasons.setdefault(layer.dense, []).append(number)
    if not layers:
        why = "one token alone is decoded, not prefilled" if tokens == 1 else "no layer has called its pipeline"
        return f"nothing ran sparse in {file}: {why}"
    if not reasons:
        return None
    each = [f"{numbered(numbers)}: {reason}" for reason, numbers in reasons.items()]
    dense = sum(map(len, reasons.values()))
    if dense < len(layers):
        return f"{dense} of {len(layers)} layers ran dense in {file}: {'; '.join(each)}"
    return f"nothing ran sparse in {file}: {next(iter(reasons)) if len(each) == 1 else '; '.join(each)}"


def sinks(layers: Mapping[int, Layer]) -> str | None:
    """Return the line that warns of sinks left out; None if there is nothing to warn of."""
    line = sinks_left_out({number: layer.sinks for number, layer in layers.items() if layer.sinks})
    return f"WARNING: {line}" if line else None


def _ran_sparse(sparse: Found) -> bool:
    return any(layer.dense is None for layer in sparse.layers.values())


def _overlap(dense: Found, sparse: Found) -> bool:
    """Return whether the ranges of the times to the first token overlap; one time alone has none."""
    (low, high), (least, most) = dense.spread, sparse.spread
    return len(dense.runs) > 1 and low <= most and least <= high


def how_sure(dense: Found, sparse: Found) -> str | None:
    """Return the line that says how far the speed-up is to be trusted; None if there is nothing to say."""
    if len(dense.runs) == 1:
        return f"timed once, because a first token took more than {LONG / 1000:g} s: a small difference may be noise"
    if _ran_sparse(sparse) and _overlap(dense, sparse):
        return f"time to the first token: no difference beyond noise (the ranges of {TURNS} runs each overlap)"
    return None


def table(dense: Found, sparse: Found) -> Table:
    table = Table(
        "",
        caption=f"first token: median of {len(dense.runs)}; kept: queries, density: pairs, both mean over layers",
    )
    for name in ("first token ms", "min..max", "speed-up", "all ms", "kept", "density"):
        table.add_column(name, justify="right")
    speed_up = f"{dense.first_ms / sparse.first_ms:.2f}x"
    if not _ran_sparse(sparse):
        speed_up = "-"
    elif _overlap(dense, sparse):
        speed_up = "~"
    for name, one, cell in (("dense", dense, "1.00x"), ("sparse", sparse, speed_up)):
        spread = "..".join(f"{ms:,.0f}" for ms in one.spread)
        figures = f"{one.first_ms:,.0f}", spread, cell, f"{one.all_ms:,.0f}"
        table.add_row(name, *figures, f"{one.mean('kept'):.3f}", f"{one.mean('density'):.3f}")
    return table
