"""The choice of layers to sparsify, and of their pipelines, measured on the user's own text.

`profile_layers` is the paper's rule (Token Sparse Attention, arXiv:2602.03216, section 2): sparsify the layers that
change the hidden states least. `calibrate` measures candidate pipelines in every layer and takes the fastest of those
whose output error is small enough. Both work on any decoder model of transformers, without a patch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from .checks import check_ratio
from .execute import attend
from .extras import needs
from .layers import DENSE, Measured, Schedule, by_range, numbered, to_pipeline
from .pipeline import Pipeline
from .plan import Plan
from .problem import Problem
from .report import accuracy, dense_rows, last_rows, sampled_rows
from .sinks import SINKS, Sinks, measure, over_prompts
from .timing import now_ms

LOOK = 64  # tokens of a prompt for the check that a layer can be sparse
EPS = 1e-6  # added to the norm of a token's hidden state, because that of zeros has no relative change

OnStep = Callable[[int, int, str], None]  # (number of steps done, of all steps, name of the last step)
Prompt = Tensor | Sequence[int]  # token ids, [n] or [1, n]


@dataclass(frozen=True)
class LayerProfile:
    """The drift of each layer, and its attention on the first keys."""

    drift: dict[int, float]  # by layer, |output - input| / |input|, mean over all tokens of all prompts
    quantile: float  # part of the layers to sparsify, in [0, 1]
    sinks: dict[int, Sinks] = field(default_factory=dict)  # by layer that can be sparse, attention on the sinks

    @property
    def ranks(self) -> dict[int, float]:
        """By layer, the part of the layers whose drift is not larger, in (0, 1]."""
        return {
            layer: sum(other <= mine for other in self.drift.values()) / len(self.drift)
            for layer, mine in self.drift.items()
        }

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to sparsify, which have a rank of at most `quantile`."""
        return tuple(layer for layer, rank in self.ranks.items() if rank <= self.quantile)

    def schedule(self, pipeline: Pipeline | str) -> "Schedule":
        """Return the schedule with a pipeline in the layers to sparsify, and dense attention in the others."""
        spec = to_pipeline(pipeline).to_spec()
        specs = {layer: spec if layer in self.layers else DENSE for layer in self.drift}
        return Schedule(by_range(specs), sinks={layer: one.figures() for layer, one in self.sinks.items()})

    def warning(self) -> str | None:
        """Return in one line the layers to sparsify in which the profile's pipeline drops sinks that matter, or None.

        It is None for a profile without a pipeline.
        """
        return sinks_left_out({layer: one for layer, one in self.sinks.items() if layer in self.layers})

    def table(self) -> Table:
        """Return the profile as a table for rich."""
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


def profile_layers(
    model: Any,
    prompts: Iterable[Prompt],
    *,
    quantile: float = 0.5,
    pipeline: Pipeline | str | None = None,
    on_step: OnStep | None = None,
) -> LayerProfile:
    """Measure the drift of a model's layers and the attention on the sinks, by one dense prefill per prompt.

    `model` is a decoder model of transformers, with or without a head; `prompts` are token ids, [n] each; `quantile` in
    [0, 1] is the part of the layers to sparsify. With a `pipeline`, whose stages also run on short prompts, the profile
    counts the queries that lose the sinks, see `LayerProfile.warning`. `on_step(done, total, name)` is called after
    each layer of each prompt. Raises ValueError for text instead of ids, no prompts, a model in training mode, or one
    of which no layer can be sparse.
    """
    check_ratio("quantile", quantile)
    needs("transformers", "hf")
    from .integrations.transformers import LayerCall, sparsify

    decides = None if pipeline is None else Pipeline([to_pipeline(pipeline)], break_even=0)
    given, layers = token_ids(model, prompts), decoder_layers(model)
    require_attention(model, given)
    changes = dict.fromkeys(layers, 0.0)
    tokens = sum(ids.numel() for ids in given)
    done = 0
    sinks: dict[int, list[Sinks]] = {}

    def watch(call: LayerCall) -> None:
        plan = decides.decide(call.problem) if decides else None
        if (one := measure(call.problem, sampled_rows(call.problem), plan)) is not None:
            sinks.setdefault(call.layer, []).append(one)

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
                prefill(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    drift = {layer: change / tokens for layer, change in changes.items()}
    return LayerProfile(drift, quantile, {layer: over_prompts(each) for layer, each in sorted(sinks.items())})


def calibrate(
    model: Any,
    prompts: Iterable[Prompt],
    pipelines: Iterable[Pipeline | str],
    *,
    target: float = 0.99,
    on_step: OnStep | None = None,
) -> Schedule:
    """Find the schedule that saves most attention time while the output of every layer meets the target.

    A candidate is allowed in a layer if 1 - its relative output error is at least `target`, in (0, 1], on every
    prompt, both on query rows spread over it and on its last rows: later layers read the first, and the answer comes
    from the last. The target is about the error and not the attention mass, because the rest of the model sees the
    output: a sink has much mass and hardly any value. A layer gets the fastest allowed candidate, or dense attention.

    Every candidate runs on the queries, keys and values that a layer has when the model is dense. So one layer's
    figures do not depend on the other layers, and one dense prefill of a prompt serves all candidates. Errors are
    against dense attention in float64, as in `explain`. Here the stages of `pipelines` also run on short prompts
    (`break_even=0`); the schedule holds the pipelines unchanged. Layers whose attention the integration leaves to the
    model stay dense. `prompts` are token ids, [n] each; `on_step(done, total, name)` is called after each candidate
    in each layer. Raises ValueError for a pipeline that has no spec, text instead of ids, no prompts, a model in
    training mode, or one of which no layer can be sparse.
    """
    needs("transformers", "hf")
    from .integrations.transformers import LayerCall, sparsify

    check_ratio("target", target, low="(")
    candidates = {pipeline.to_spec(): Pipeline([pipeline], break_even=0) for pipeline in map(to_pipeline, pipelines)}
    candidates.pop(DENSE, None)
    given, layers = token_ids(model, prompts), decoder_layers(model)
    require_attention(model, given)
    place = {layer: i for i, layer in enumerate(layers)}
    figures_of: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    prompt, warm = 0, False

    def watch(call: LayerCall) -> None:
        nonlocal warm
        judged = [
            (rows, dense_rows(call.problem, rows)) for rows in (sampled_rows(call.problem), last_rows(call.problem))
        ]
        figures_of.setdefault((call.layer, DENSE), []).append((call.ms, 1.0, 1.0, 1.0, 0.0))
        for number, (spec, pipeline) in enumerate(candidates.items(), 1):
            if not warm:
                timed(pipeline, call.problem)
            plan, ms = timed(pipeline, call.problem)
            kept, density, mass, error = zip(*(accuracy(call.problem, plan, *how) for how in judged), strict=True)
            figures_of.setdefault((call.layer, spec), []).append((ms, kept[0], density[0], min(mass), max(error)))
            if on_step:
                before = (prompt * len(layers) + place[call.layer]) * len(candidates)
                on_step(before + number, len(given) * len(layers) * len(candidates), f"layer {call.layer}")
        warm = True

    with sparsify(model, DENSE):
        prefill(model, given[0])  # the first call of anything is slower
    with sparsify(model, DENSE, watch=watch):
        for prompt, ids in enumerate(given):  # noqa: B007  # watch reads it
            warm = False
            prefill(model, ids)
    if not figures_of:
        raise ValueError(
            f"prompts: got {len(given)} of at most {max(map(Tensor.numel, given))} tokens, and no layer had a prefill; "
            "allowed are two tokens or more: pass longer ones"
        )
    return choose([_over_prompts(*key, figures) for key, figures in figures_of.items()], layers, target)


def choose(measured: Sequence[Measured], layers: Iterable[int], target: float) -> Schedule:
    """Return the schedule with each layer's fastest pipeline of score at least `target`, or dense attention."""
    best: dict[int, Measured] = {}
    for one in measured:
        if one.score >= target and (one.layer not in best or one.ms < best[one.layer].ms):
            best[one.layer] = one
    specs = {layer: best[layer].pipeline if layer in best else DENSE for layer in layers}
    marked = tuple(replace(one, chosen=one is best.get(one.layer)) for one in measured)
    return Schedule(by_range(specs), marked, target)


def sinks_left_out(found: Mapping[int, Sinks]) -> str | None:
    """Return in one line the layers in which a plan drops sinks that matter, or None."""
    bad = {layer: one for layer, one in found.items() if one.matters}
    if not bad:
        return None
    worst = max(bad, key=lambda layer: bad[layer].mean * bad[layer].left_out)
    others = [layer for layer in bad if layer != worst]
    return f"in layer {worst} {bad[worst].warning()}" + (f"; likewise {numbered(others)}" if others else "")


def _over_prompts(layer: int, pipeline: str, figures: Sequence[tuple[float, ...]]) -> Measured:
    ms, kept, density, mass, error = zip(*figures, strict=True)
    return Measured(layer, pipeline, mean(ms), mean(kept), mean(density), min(mass), max(error))


def timed(pipeline: Pipeline, problem: Problem) -> tuple[Plan, float]:
    """Run a pipeline; return the plan, and the ms to decide and attend."""
    began = now_ms(problem.q.device)
    plan = pipeline.decide(problem)
    attend(problem, plan, compress=pipeline.compress.mode, backend=pipeline.attend.backend)
    return plan, now_ms(problem.q.device) - began


@torch.no_grad()
def prefill(model: Any, ids: Tensor) -> None:
    """Run a model over a prompt [1, n], without its head."""
    model.base_model(ids, use_cache=False)  # nothing reads the logits


def require_attention(model: Any, prompts: Sequence[Tensor]) -> None:
    """Raise ValueError for a model of which no layer can be sparse; call it before the measurement."""
    needs("transformers", "hf")
    from .integrations.transformers import sparsify

    seen: list[int] = []
    ids = max(prompts, key=Tensor.numel)[:, :LOOK]
    with sparsify(model, DENSE, watch=lambda call: seen.append(call.layer)):
        prefill(model, ids if ids.numel() > 1 else ids.repeat(1, 2))  # one token alone is decoded
    if not seen:
        raise ValueError(
            f"model: got {type(model).__name__}, of which no layer can be sparse; allowed are models whose layers "
            "call the attention interface of transformers with a causal mask: pass such a model"
        )


def token_ids(model: Any, prompts: Iterable[Prompt]) -> list[Tensor]:
    """Return each prompt as [1, n] on the model's device. Raises ValueError for anything but token ids."""
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


def decoder_layers(model: Any) -> dict[int, nn.Module]:
    """Return, by number, the modules of the outermost list whose entries have an attention layer each."""
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
