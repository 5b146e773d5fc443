"""Measures what pipelines do in every layer and head of a model, on one prompt.

Every pipeline gets the queries, keys and values that each layer has when the model is dense, as in `calibrate`, so one
dense prefill serves all pipelines. Heads are measured one after the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..calibrate import Prompt, decoder_layers, prefill, require_attention, sinks_left_out, timed, token_ids
from ..extras import needs
from ..layers import DENSE, Given, by_layer, to_pipeline, without_break_even
from ..pipeline import Pipeline
from ..plan import Plan
from ..problem import to_heads
from ..report import accuracy, dense_rows, sampled_rows
from ..sinks import Sinks, measure
from .pictures import Grid, look, side

if TYPE_CHECKING:
    from ..integrations.transformers import LayerCall

OnStep = Callable[[int, int, str], None]  # (steps done, steps in all, name of the last step)


@dataclass(frozen=True)
class Figures:
    """Figures of a plan, for one head or over all heads of a layer; as in a `Step` of a report."""

    kept: float  # part of the queries, in [0, 1]
    density: float  # part of the dense pairs, in [0, 1]
    mass: float  # dense attention probability on the computed pairs, mean over sampled queries, in [0, 1]
    error: float  # |output - dense| / |dense| over sampled queries


@dataclass(frozen=True)
class Run:
    """One pipeline in one layer."""

    spec: str  # of the pipeline of this layer
    whole: Figures  # over all heads
    heads: tuple[Figures, ...]
    ms: float  # stages and attention
    sinks: Sinks | None  # the attention on the first keys that the plan leaves out; None for a dense plan
    computed: Tensor  # [H, 2, cells, cells] uint8: see `Look`
    kept: Tensor  # [n]: number of heads that keep the query of each token
    read: Tensor  # [n]: number of sampled queries that compute the key of each token


@dataclass(frozen=True)
class Layer:
    """One layer with dense attention, and with each pipeline."""

    number: int
    dense_ms: float  # of the model's own attention
    sinks: tuple[float, ...] | None  # by head, dense attention mass on the first keys; None if no query sees others
    window: int | None  # the model's sliding window, in keys; None if the layer has none
    attention: Tensor  # [H, cells, cells] uint8: see `Look`
    seen: Tensor  # [n]: number of sampled queries that see the key of each token
    runs: tuple[Run, ...]  # by pipeline


@dataclass(frozen=True)
class Exploration:
    """The measurements on one prompt; `write_page` writes them as a page."""

    grid: Grid
    pipelines: tuple[str, ...]  # names
    layers: tuple[Layer, ...]  # the layers that could be measured
    unseen: tuple[int, ...]  # layers whose attention the integration leaves to the model

    @property
    def heads(self) -> int:
        """The number of query heads in all layers."""
        return sum(len(layer.attention) for layer in self.layers)

    def runs(self, pipeline: int) -> list[Run]:
        """Return the runs of a pipeline, by layer."""
        return [layer.runs[pipeline] for layer in self.layers]

    def totals(self, pipeline: int) -> dict[str, float]:
        """Return the means over layers, the largest error of a layer, and the ms of all layers."""
        whole = [run.whole for run in self.runs(pipeline)]
        means = {name: mean(getattr(layer, name) for layer in whole) for name in ("kept", "density", "mass", "error")}
        ms = sum(run.ms for run in self.runs(pipeline))
        return means | {"worst": max(layer.error for layer in whole), "ms": ms}

    def kept(self, pipeline: int) -> Tensor:
        """Return the number of heads, over all layers, that keep the query of each token, [n]."""
        return torch.stack([run.kept for run in self.runs(pipeline)]).sum(0)

    def read(self, pipeline: int) -> Tensor:
        """Return for each token's key the part of the queries that compute it, of those that see it, [n]."""
        read, seen = (torch.stack(each).sum(0) for each in ([run.read for run in self.runs(pipeline)], self._seen()))
        return read / seen

    def _seen(self) -> list[Tensor]:
        return [layer.seen for layer in self.layers]

    def warning(self, pipeline: int) -> str | None:
        """Return one line that says in which layers a pipeline leaves out the sinks; None if in none."""
        sinks = {layer.number: layer.runs[pipeline].sinks for layer in self.layers}
        return sinks_left_out({number: mass for number, mass in sinks.items() if mass is not None})


def explore(
    model: Any,
    prompt: Prompt,
    pipelines: Mapping[str, Given],
    *,
    cells: int | None = None,
    on_step: OnStep | None = None,
) -> Exploration:
    """Measure what pipelines do in every layer and head of a model on one prompt.

    `prompt` is token ids, [n]. `pipelines` maps names to pipelines; their stages always run, even on a short prompt
    (`break_even=0`). `cells` is the largest number of cells of a picture along an axis; None: as many as keep the page
    at a few MB. `on_step(done, total, name)` is called after each layer. Raises ValueError for no pipelines, a pipeline
    that does not fit the model, text instead of ids, fewer than two tokens, and a model in training mode or without a
    layer that can be sparse.
    """
    needs("transformers", "hf")
    from ..integrations.transformers import sparsify

    if not pipelines:
        raise ValueError("pipelines: got none; allowed are one or more, by name: pass a spec")
    ids, numbers = token_ids(model, [prompt])[0], list(decoder_layers(model))
    if ids.numel() < 2:
        raise ValueError(f"prompt: got {ids.numel()} token; allowed are two or more tokens: pass a longer text")
    chosen = [by_layer(_always(given), numbers) for given in pipelines.values()]
    require_attention(model, [ids])
    layers: dict[int, Layer] = {}

    def watch(call: "LayerCall") -> None:
        heads = len(numbers) * call.problem.q.shape[1]
        grid = Grid.of(ids.numel(), cells or side(heads * (1 + len(chosen))))
        layers[call.layer] = _layer(call, [by_number[call.layer] for by_number in chosen], grid, warm=bool(layers))
        grids.append(grid)
        if on_step:
            on_step(len(layers), len(numbers), f"layer {call.layer}")

    grids: list[Grid] = []
    with sparsify(model, DENSE):
        prefill(model, ids)  # a warm-up: first calls are slower
    with sparsify(model, DENSE, watch=watch):
        prefill(model, ids)
    unseen = tuple(number for number in numbers if number not in layers)
    return Exploration(grids[0], tuple(pipelines), tuple(layers[number] for number in sorted(layers)), unseen)


def _always(given: Given) -> Any:
    return without_break_even(
        {name: to_pipeline(one) for name, one in given.items()} if isinstance(given, Mapping) else to_pipeline(given)
    )


def _layer(call: "LayerCall", pipelines: Sequence[Pipeline | None], grid: Grid, warm: bool) -> Layer:
    """Measure pipelines (None: dense) on a layer's problem; unless `warm`, each first runs once untimed."""
    problem, H = call.problem, call.problem.q.shape[1]
    for pipeline in pipelines if not warm else ():
        if pipeline is not None:
            timed(pipeline, problem)
    ran = [(Plan(), call.ms) if pipeline is None else timed(pipeline, problem) for pipeline in pipelines]
    rows, figures, norms, looks = sampled_rows(problem), [], [], []
    for h in range(H):
        one, parts = problem.head(h), [plan.head(h, H) for plan, _ in ran]
        dense = dense_rows(one, rows)
        figures.append([Figures(*accuracy(one, part, rows, dense)) for part in parts])
        norms.append(dense[1].norm().item())
        looks.append(look(one, parts, grid))
    runs = []
    for i, ((plan, ms), pipeline) in enumerate(zip(ran, pipelines, strict=True)):
        heads = tuple(each[i] for each in figures)
        runs.append(
            Run(
                pipeline.to_spec() if pipeline else DENSE,
                _over(heads, norms),
                heads,
                ms,
                measure(problem, rows, plan) if plan != Plan() else None,
                torch.stack([each.computed[i] for each in looks]),
                H - to_heads(plan.dropped(problem), H)[0].sum(0).cpu(),
                torch.stack([each.read[i] for each in looks]).sum(0),
            )
        )
    sinks = measure(problem, rows)
    return Layer(
        call.layer,
        call.ms,
        sinks.heads if sinks else None,
        problem.sliding_window,
        torch.stack([each.attention for each in looks]),
        torch.stack([each.seen for each in looks]).sum(0),
        tuple(runs),
    )


def _over(heads: Sequence[Figures], norms: Sequence[float]) -> Figures:
    """Return the figures over all heads, from each head's figures and the norm of its dense output."""
    norm = math.hypot(*norms)
    error = math.hypot(*(head.error * own for head, own in zip(heads, norms, strict=True))) / norm if norm else 0.0
    return Figures(
        mean(head.kept for head in heads),
        mean(head.density for head in heads),
        mean(head.mass for head in heads),
        error,
    )
