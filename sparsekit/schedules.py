"""Which layers to sparsify, and by what: measured on the user's own text.

`profile_layers` is the paper's rule (Token Sparse Attention, arXiv:2602.03216, section 2): sparsify the layers that
change the hidden states least. `calibrate` measures candidate pipelines in every layer and takes the fastest of those
that keep what matters. Both work on any decoder model of transformers; nothing in it is patched.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import torch
from rich.table import Column, Table
from torch import Tensor, nn

from .execute import attend
from .extras import needs
from .parameters import check_ratio
from .pipeline import Pipeline
from .plan import Plan
from .problem import Problem
from .report import accuracy, dense_rows, last_rows, sampled_rows
from .sinks import SINKS, Sinks, measure, over_prompts
from .timing import now_ms

FILE = "sparsekit.json"  # the name of a schedule beside its model
DENSE = "dense"
LOOK = 64  # tokens of a prompt that show which layers can be sparse
EPS = 1e-6  # added to the norm of a token's hidden state: one of zeros has no relative change

Layers: TypeAlias = dict[int | str, Pipeline | str]  # a layer, a range "4-7" or "default", to a pipeline or its spec
OnStep = Callable[[int, int, str], None]  # (steps done, steps in all, what was done last)
Prompt = Tensor | Sequence[int]  # token ids, [n] or [1, n]


@dataclass(frozen=True)
class LayerProfile:
    """How much each layer changes the hidden states, and how much of its attention the first keys hold."""

    drift: dict[int, float]  # by layer: |output - input| / |input| of a token, mean over all tokens of all prompts
    quantile: float  # part of the layers to sparsify, in [0, 1]
    sinks: dict[int, Sinks] = field(default_factory=dict)  # by layer that can be sparse: mass on the first keys

    @property
    def ranks(self) -> dict[int, float]:
        """By layer: the part of the layers whose drift is not larger, in (0, 1]."""
        return {
            layer: sum(other <= mine for other in self.drift.values()) / len(self.drift)
            for layer, mine in self.drift.items()
        }

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to sparsify: those of rank at most `quantile`."""
        return tuple(layer for layer, rank in self.ranks.items() if rank <= self.quantile)

    def schedule(self, pipeline: Pipeline | str) -> "Schedule":
        """That pipeline in the layers to sparsify, dense in the others."""
        spec = _parsed(pipeline).to_spec()
        specs = {layer: spec if layer in self.layers else DENSE for layer in self.drift}
        return Schedule(by_range(specs), sinks={layer: one.figures() for layer, one in self.sinks.items()})

    def warning(self) -> str | None:
        """Return in one line in which layers to sparsify the pipeline measured leaves out the sinks; None if in none.

        Only of a profile that was made with a pipeline.
        """
        return sinks_left_out({layer: one for layer, one in self.sinks.items() if layer in self.layers})

    def table(self) -> Table:
        """For rich."""
        caption = f"sparsify: of rank {self.quantile:g} or less"
        caption += f"; sinks: attention mass on the first {SINKS} keys, mean over heads, and the largest head"
        table = Table("layer", title="inter-layer drift", caption=caption)
        for name in ("drift", "rank", "sparsify", "sinks", "largest head"):
            table.add_column(name, justify="right")
        for layer, rank in self.ranks.items():
            one = self.sinks.get(layer)
            sinks = (f"{one.mean:.3f}", f"{one.largest:.3f} ({one.head})") if one else ("", "")
            chosen = "yes" if layer in self.layers else ""
            table.add_row(str(layer), f"{self.drift[layer]:.4f}", f"{rank:.2f}", chosen, *sinks)
        return table


@dataclass(frozen=True)
class Measured:
    """One pipeline in one layer, over all prompts."""

    layer: int
    pipeline: str  # spec
    ms: float  # deciding and attending, mean over prompts
    kept: float  # part of the queries, in [0, 1], mean over prompts
    density: float  # part of the dense pairs, in [0, 1], mean over prompts
    mass: float  # attention probability on the computed pairs, in [0, 1], of the worst prompt and rows
    error: float  # |output - dense| / |dense|, of the worst prompt and rows
    chosen: bool = False  # the layer got it

    @property
    def score(self) -> float:
        """What a target is about: 1 - `error`."""
        return 1 - self.error


@dataclass(frozen=True)
class Schedule:
    """A pipeline for each layer; `sparsify(model, schedule.pipeline)` puts it in."""

    pipeline: Layers  # specs
    measured: tuple[Measured, ...] = ()  # every candidate in every layer
    target: float | None = None  # the least score every layer had to keep
    sinks: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # by layer: `Sinks.figures` of a profile

    @property
    def chosen(self) -> dict[int, Measured]:
        """By layer: what it got."""
        return {one.layer: one for one in self.measured if one.chosen}

    @property
    def dense(self) -> dict[int, Measured]:
        """By layer: dense attention."""
        return {one.layer: one for one in self.measured if one.pipeline == DENSE}

    @property
    def speed_up(self) -> float:
        """Of the attention measured, over dense; 1 if nothing was measured."""
        before, after = (sum(one.ms for one in of.values()) for of in (self.dense, self.chosen))
        return before / after if after else 1.0

    def table(self) -> Table:
        """For rich: every layer with what it got."""
        table = Table(
            "layer",
            Column("pipeline", overflow="fold"),
            title=f"schedule: attention {self.speed_up:.2f} times as fast as dense",
            caption=f"1 - output error is at least {self.target} in every layer; ms: of a prompt",
        )
        for name in ("mass kept", "output error", "density", "ms", "dense ms"):
            table.add_column(name, justify="right")
        for layer, one in self.chosen.items():
            figures = f"{one.mass:.4f}", f"{one.error:.1e}", f"{one.density:.3f}", f"{one.ms:.2f}"
            table.add_row(str(layer), one.pipeline, *figures, f"{self.dense[layer].ms:.2f}")
        return table

    def save(self, path: Path | str) -> Path:
        """As JSON, written whole; a folder gets it as sparsekit.json, beside its model. Returns the file's path."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        layers = [asdict(one) for one in self.measured]
        measured: dict[str, Any] = {"target": self.target, "layers": layers} if layers else {}
        measured |= {"sinks": self.sinks} if self.sinks else {}
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(json.dumps({"pipeline": self.pipeline, "measured": measured}, indent=1) + "\n")
        return unfinished.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> "Schedule":
        """The schedule of a file, or of the sparsekit.json in a folder. Raises ValueError for anything else."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            found = json.loads(path.read_bytes())
            layers, measured = found["pipeline"], found.get("measured", {})
            layers = {"default": layers} if isinstance(layers, str) else layers
            made = cls(
                {name: _parsed(spec).to_spec() for name, spec in layers.items()},
                tuple(Measured(**one) for one in measured.get("layers", ())),
                measured.get("target"),
                {int(layer): dict(one) for layer, one in measured.get("sinks", {}).items()},
            )
        except OSError as error:
            raise ValueError(
                f"path: {str(path)!r} cannot be read ({error.strerror}); allowed is a file that Schedule.save wrote: "
                "pass one"
            ) from error
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"path: {str(path)!r} is no schedule ({type(error).__name__}: {error}); allowed is JSON like "
                '{"pipeline": {"0-3": "dense", "4": "token_coverage"}}: save one with Schedule.save'
            ) from error
        return made


def read_pipeline(text: str) -> Pipeline | Layers:
    """What `sparsify` takes, from a spec, or from the path of a schedule: a .json file, or a folder with one.

    Raises ValueError for a spec that does not parse or a file that is no schedule.
    """
    if text.endswith(".json") or os.path.isfile(os.path.join(text, FILE)):  # unlike Path, False for a long spec
        return Schedule.load(text).pipeline
    try:
        return Pipeline.from_spec(text)
    except ValueError as error:
        if os.path.exists(text):
            raise ValueError(
                f"pipeline: got the path {text!r}, which is no schedule; allowed are a spec, a .json file, or a folder "
                f"with a {FILE}: save one with sparsekit profile or calibrate"
            ) from error
        raise


def always(pipeline: Pipeline | Layers) -> Pipeline | Layers:
    """The same, but never dense because the prompt is short: `break_even=0` in every layer."""
    if isinstance(pipeline, dict):
        return {name: Pipeline([_parsed(one)], break_even=0) for name, one in pipeline.items()}
    return Pipeline([pipeline], break_even=0)


def profile_layers(
    model: Any,
    prompts: Iterable[Prompt],
    *,
    quantile: float = 0.5,
    pipeline: Pipeline | str | None = None,
    on_step: OnStep | None = None,
) -> LayerProfile:
    """The inter-layer drift of a model on prompts, and the attention on its sinks: one dense prefill each.

    `model` is a decoder model of transformers, or one with a head on it; `prompts` are token ids, [n] each, and
    `quantile` in [0, 1] is the part of the layers to sparsify. With a `pipeline`, which runs however short the prompts
    are, the profile knows from how many queries it takes the sinks, see `LayerProfile.warning`.
    `on_step(done, total, name)` is called after each
    layer of each prompt. Raises ValueError for text instead of ids, no prompts, a model in training mode, or one none
    of whose layers can be sparse.
    """
    check_ratio("quantile", quantile)
    needs("transformers", "hf")
    from .integrations.transformers import LayerCall, sparsify

    decides = None if pipeline is None else Pipeline([_parsed(pipeline)], break_even=0)
    given, layers = _ids(model, prompts), _decoder_layers(model)
    _require_attention(model, given)
    changes = dict.fromkeys(layers, 0.0)
    tokens = sum(ids.numel() for ids in given)
    done = 0
    found: dict[int, list[Sinks]] = {}

    def watch(call: LayerCall) -> None:
        plan = decides.decide(call.problem) if decides else None
        if (one := measure(call.problem, sampled_rows(call.problem), plan)) is not None:
            found.setdefault(call.layer, []).append(one)

    def hook(layer: int) -> Callable:
        def measure(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            nonlocal done
            before = (args[0] if args else kwargs["hidden_states"]).float()
            after = (out if isinstance(out, Tensor) else out[0]).float()
            change = (after - before).norm(dim=-1) / (before.norm(dim=-1) + EPS)
            changes[layer] += change.mean().item() * before.shape[1]
            done += 1
            if on_step:
                on_step(done, len(given) * len(layers), f"layer {layer}")

        return measure

    handles = [module.register_forward_hook(hook(layer), with_kwargs=True) for layer, module in layers.items()]
    try:
        with sparsify(model, DENSE, watch=watch):
            for ids in given:
                _prefill(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    drift = {layer: change / tokens for layer, change in changes.items()}
    return LayerProfile(drift, quantile, {layer: over_prompts(each) for layer, each in sorted(found.items())})


def calibrate(
    model: Any,
    prompts: Iterable[Prompt],
    pipelines: Iterable[Pipeline | str],
    *,
    target: float = 0.99,
    on_step: OnStep | None = None,
) -> Schedule:
    """The schedule that saves most attention time while every layer's output stays within the target.

    A candidate is allowed in a layer if 1 - its relative output error is at least `target`, in (0, 1], on every
    prompt, both on query rows spread over it and on its last rows: the first are what later layers read, and from the
    last the answer is made. The error and not the attention mass, because it is what the rest of the model sees: a
    sink holds much mass and hardly any value. A layer gets the fastest of the allowed, or dense attention.

    Every candidate meets the queries, keys and values that each layer has when the model is dense, so one layer's
    figures do not depend on what the others do, and one dense prefill a prompt serves all candidates. Errors are
    against dense attention in float64, as in `explain`. `pipelines` run however short the prompts are
    (`break_even=0`); the schedule has them as they were given. Layers whose attention the integration leaves to the
    model stay dense. `prompts` are token ids, [n] each; `on_step(done, total, name)` is called after each candidate
    in each layer. Raises ValueError for a pipeline that has no spec, text instead of ids, no prompts, a model in
    training mode, or one none of whose layers can be sparse.
    """
    needs("transformers", "hf")
    from .integrations.transformers import LayerCall, sparsify

    check_ratio("target", target, low="(")
    made = {pipeline.to_spec(): Pipeline([pipeline], break_even=0) for pipeline in map(_parsed, pipelines)}
    made.pop(DENSE, None)
    given, layers = _ids(model, prompts), _decoder_layers(model)
    _require_attention(model, given)
    place = {layer: i for i, layer in enumerate(layers)}
    found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    prompt, warm = 0, False

    def watch(call: LayerCall) -> None:
        nonlocal warm
        judged = [
            (rows, dense_rows(call.problem, rows)) for rows in (sampled_rows(call.problem), last_rows(call.problem))
        ]
        found.setdefault((call.layer, DENSE), []).append((call.ms, 1.0, 1.0, 1.0, 0.0))
        for number, (spec, pipeline) in enumerate(made.items(), 1):
            if not warm:
                _timed(pipeline, call.problem)
            plan, ms = _timed(pipeline, call.problem)
            kept, density, mass, error = zip(*(accuracy(call.problem, plan, *how) for how in judged), strict=True)
            found.setdefault((call.layer, spec), []).append((ms, kept[0], density[0], min(mass), max(error)))
            if on_step:
                before = (prompt * len(layers) + place[call.layer]) * len(made)
                on_step(before + number, len(given) * len(layers) * len(made), f"layer {call.layer}")
        warm = True

    with sparsify(model, DENSE):
        _prefill(model, given[0])  # the first call of anything is slower
    with sparsify(model, DENSE, watch=watch):
        for prompt, ids in enumerate(given):  # noqa: B007  # watch reads it
            warm = False
            _prefill(model, ids)
    if not found:
        raise ValueError(
            f"prompts: got {len(given)} of at most {max(map(Tensor.numel, given))} tokens, and no layer had a prefill; "
            "allowed are two tokens or more: pass longer ones"
        )
    return choose([_over_prompts(*key, figures) for key, figures in found.items()], layers, target)


def choose(measured: Sequence[Measured], layers: Iterable[int], target: float) -> Schedule:
    """For each layer the fastest of what was measured in it whose score is at least `target`; dense if none is."""
    best: dict[int, Measured] = {}
    for one in measured:
        if one.score >= target and (one.layer not in best or one.ms < best[one.layer].ms):
            best[one.layer] = one
    specs = {layer: best[layer].pipeline if layer in best else DENSE for layer in layers}
    marked = tuple(replace(one, chosen=one is best.get(one.layer)) for one in measured)
    return Schedule(by_range(specs), marked, target)


def by_range(specs: Mapping[int, str]) -> Layers:
    """{0: a, 1: a, 2: b} -> {"0-1": a, "2": b}: neighbours with the same spec under one name."""
    runs: list[list[int]] = []
    for layer in sorted(specs):
        if runs and runs[-1][-1] == layer - 1 and specs[runs[-1][-1]] == specs[layer]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return {str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}": specs[run[0]] for run in runs}


def numbered(layers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "layers 0-2, 5"."""
    names = list(by_range(dict.fromkeys(layers, "")))
    return f"layer{'s' if len(names) > 1 or '-' in str(names[0]) else ''} {', '.join(map(str, names))}"


def sinks_left_out(found: Mapping[int, Sinks]) -> str | None:
    """Return in one line in which layers a plan leaves out what attention rests on; None if in none."""
    bad = {layer: one for layer, one in found.items() if one.matters}
    if not bad:
        return None
    worst = max(bad, key=lambda layer: bad[layer].mean * bad[layer].left_out)
    others = [layer for layer in bad if layer != worst]
    return f"in layer {worst} {bad[worst].warning()}" + (f"; likewise {numbered(others)}" if others else "")


def _over_prompts(layer: int, pipeline: str, figures: Sequence[tuple[float, ...]]) -> Measured:
    ms, kept, density, mass, error = zip(*figures, strict=True)
    return Measured(layer, pipeline, mean(ms), mean(kept), mean(density), min(mass), max(error))


def _timed(pipeline: Pipeline, problem: Problem) -> tuple[Plan, float]:
    """The plan, and the ms of deciding and attending."""
    began = now_ms(problem.q.device)
    plan = pipeline.decide(problem)
    attend(problem, plan, compress=pipeline.compress.mode, backend=pipeline.attend.backend)
    return plan, now_ms(problem.q.device) - began


def _parsed(pipeline: Pipeline | str) -> Pipeline:
    return Pipeline.from_spec(pipeline) if isinstance(pipeline, str) else pipeline


@torch.no_grad()
def _prefill(model: Any, ids: Tensor) -> None:
    model.base_model(ids, use_cache=False)  # without its head: nobody reads the logits


def _require_attention(model: Any, prompts: Sequence[Tensor]) -> None:
    """Raise ValueError for a model none of whose layers can be sparse, before anything is measured."""
    needs("transformers", "hf")
    from .integrations.transformers import sparsify

    seen: list[int] = []
    ids = max(prompts, key=Tensor.numel)[:, :LOOK]
    with sparsify(model, DENSE, watch=lambda call: seen.append(call.layer)):
        _prefill(model, ids if ids.numel() > 1 else ids.repeat(1, 2))  # one token alone is decoded
    if not seen:
        raise ValueError(
            f"model: got {type(model).__name__}, none of whose layers can be sparse; allowed are models whose layers "
            "call the attention interface of transformers with a causal mask: pass such a model"
        )


def _ids(model: Any, prompts: Iterable[Prompt]) -> list[Tensor]:
    """Each prompt as [1, n] on the model's device."""
    if model.training:
        raise ValueError("model: got one in training mode; allowed is evaluation mode: call model.eval() first")
    made = []
    for prompt in prompts:
        ids = None if isinstance(prompt, str | bytes) else torch.as_tensor(prompt, device=model.device)
        if ids is None or ids.is_floating_point() or ids.numel() == 0 or ids.numel() != ids.shape[-1]:
            raise ValueError(
                f"prompts: got {type(prompt).__name__} {str(prompt)[:40]!r}; allowed are token ids, [n] each with n at "
                "least 1: tokenize text first"
            )
        made.append(ids.reshape(1, -1))
    if not made:
        raise ValueError("prompts: got none; allowed is a list of one or more: pass text that is like your own")
    return made


def _decoder_layers(model: Any) -> dict[int, nn.Module]:
    """By number, the entries of the outermost list of modules that hold an attention layer each."""
    for stack in model.get_decoder().modules():
        numbered = {_number(layer): layer for layer in stack} if isinstance(stack, nn.ModuleList) else {}
        layers = {number: layer for number, layer in numbered.items() if number is not None}
        if layers:
            return layers
    raise ValueError(
        f"model: got {type(model).__name__}, in which no list of layers has a layer_idx; allowed are decoder models of "
        "transformers: pass one"
    )


def _number(layer: nn.Module) -> int | None:
    numbers = (getattr(module, "layer_idx", None) for module in layer.modules())
    return next((number for number in numbers if isinstance(number, int)), None)
