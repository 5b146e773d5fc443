"""Hugging Face transformers: any layer's prefill attention by a pipeline, without a monkeypatch.

    with sparsify(model, Pipeline([TokenCoverage(), FlexPrefill()])):
        model.generate(...)

An attention function and a mask function are registered under the name "sparsekit". The mask function says None for
"plain causal, the queries are the last keys", whole prefill and chunks of it, and nothing else; that is what a
pipeline runs. Decode, padded batches, sliding windows, packed sequences and static caches come with a mask, and run
dense through transformers' own SDPA, so that they are right.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ..pipeline import Pipeline, attend
from ..plan import Plan
from ..problem import Output, Problem
from ..timing import now_ms

NAME = "sparsekit"
# arguments of the attention function that change the scores, which neither a pipeline nor SDPA takes into account
FOREIGN = ("softcap", "s_aux")


@dataclass(frozen=True)
class LayerCall:
    """What one layer's attention did in one prefill call."""

    layer: int
    problem: Problem
    plan: Plan  # Plan() for a dense layer
    output: Output | None  # None for a dense layer: SDPA gives no log-sum-exp
    ms: float  # deciding and attending


Watch = Callable[[LayerCall], None]


@dataclass(frozen=True)
class _Layer:
    pipeline: Pipeline | None  # None: dense
    watch: Watch | None


_LAYERS: WeakKeyDictionary[nn.Module, _Layer] = WeakKeyDictionary()  # attention modules of sparsified models
_DENSE = _Layer(None, None)


def register() -> None:
    """Make `attn_implementation="sparsekit"` known to transformers; `sparsify` calls it. Dense until `sparsify`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


class Sparsified:
    """A model with a pipeline in it: a context manager, and a handle with `restore()`."""

    def __init__(self, model: PreTrainedModel, layers: Mapping[nn.Module, _Layer]) -> None:
        self._model = model
        self._before = {module: _LAYERS.get(module) for module in layers}
        self._implementation: dict[str, str] | None = _implementations(model)
        register()
        _LAYERS.update(layers)
        model.set_attn_implementation(NAME)

    def restore(self) -> None:
        """The model as it was, its attention implementation included. A second call does nothing."""
        if self._implementation is None:
            return
        self._model.set_attn_implementation(self._implementation)
        for module, layer in self._before.items():
            if layer is None:
                _LAYERS.pop(module, None)
            else:
                _LAYERS[module] = layer
        self._implementation = None

    def __enter__(self) -> "Sparsified":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def sparsify(
    model: PreTrainedModel,
    pipeline: Pipeline | str | Mapping[int | str, Pipeline | str],
    *,
    watch: Watch | None = None,
) -> Sparsified:
    """Let a pipeline compute the prefill attention of a model; decode stays dense.

    `pipeline` is a Pipeline or its spec, for all layers, or a mapping from layers to those: a layer's number, a range
    "15-30" (both ends in it) or "default"; layers not named are dense. `watch` is called with a LayerCall after the
    prefill attention of every layer, in the order they run. Raises ValueError for a spec that does not parse, a layer
    the model lacks or one named twice.
    """
    modules = _attention_modules(model)
    chosen = _by_layer(pipeline, sorted({layer for layer, _ in modules}))
    return Sparsified(model, {module: _Layer(chosen.get(layer), watch) for layer, module in modules})


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query [B, H, Q, D], key and value [B, G, K, D] -> [B, Q, H, D]; heads as they are, never the config's count."""
    layer = _LAYERS.get(module, _DENSE)
    foreign = [name for name in FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise ValueError(
            f'attn_implementation: "{NAME}" cannot run {type(module).__name__} with {", ".join(foreign)}; allowed are '
            'models without: use "eager" for this one'
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    plain = attention_mask is None and causal and query.shape[2] > 1 and kwargs.get("position_bias") is None
    if not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    started = now_ms(query.device) if layer.watch else 0.0
    output, plan, problem = None, Plan(), None
    if layer.pipeline is None:
        answer = _dense(module, query, key, value, dropout, scaling, **kwargs)
    else:
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            raise ValueError(
                "pipeline: got inputs that need gradients; a sparse pipeline is for inference: call the model under "
                "torch.no_grad(), or restore() it for training"
            )
        problem = Problem.of(query, key, value, scale=scaling)
        plan = layer.pipeline.decide(problem)
        output = attend(problem, plan, compress=layer.pipeline.compress.mode, backend=layer.pipeline.attend.backend)
        answer = output.o.transpose(1, 2).contiguous()
    if layer.watch:
        ms = now_ms(query.device) - started
        problem = problem or Problem.of(query, key, value, scale=scaling)
        layer.watch(LayerCall(_index(module), problem, plan, output, ms))
    return answer, None


def _dense(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, **kwargs: Any
) -> Tensor:
    """Causal attention through transformers' SDPA, which takes a mask for the chunks that its flag puts elsewhere."""
    mask, (Q, K) = None, (query.shape[2], key.shape[2])
    if Q < K:
        mask = torch.ones(1, 1, Q, K, dtype=torch.bool, device=query.device).tril(K - Q)
    return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, is_causal=True, **kwargs)[0]


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """None if the queries are the last keys and the mask is causal and nothing else; the whole mask if not."""
    last = kv_offset == 0 and int(q_offset) + q_length == kv_length
    if mask_function is causal_mask_function and last and (attention_mask is None or bool(attention_mask.all())):
        return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # type: ignore[arg-type]  # a tensor under a static cache
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,  # None has a meaning here
        **kwargs,
    )


def _index(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]


def _attention_modules(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    found = [(_index(m), m) for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    if not found:
        raise ValueError(
            f"model: got {type(model).__name__}, in which no module has a layer_idx; allowed are decoder models of "
            "transformers: pass one"
        )
    return found


def _by_layer(pipeline: Any, layers: list[int]) -> dict[int, Pipeline | None]:
    if not isinstance(pipeline, Mapping):
        return dict.fromkeys(layers, _pipeline(pipeline))
    chosen: dict[int, Pipeline | None] = {}
    for name, one in pipeline.items():
        for layer in () if name == "default" else _numbers(name):
            if layer not in layers:
                raise ValueError(
                    f"pipeline: got layer {layer}, but the model has {layers[0]} to {layers[-1]}: name one of those"
                )
            if layer in chosen:
                raise ValueError(f"pipeline: layer {layer} is named twice, again by {name!r}: keep one of the entries")
            chosen[layer] = _pipeline(one)
    default = _pipeline(pipeline.get("default", "dense"))
    return {layer: chosen.get(layer, default) for layer in layers}


def _numbers(name: int | str) -> Iterable[int]:
    if isinstance(name, int) and not isinstance(name, bool):
        return [name]
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", name) if isinstance(name, str) else None
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError(
            f'pipeline: got {name!r} for a layer; allowed are a number, a range like "15-30" and "default": write it so'
        )
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _pipeline(given: Any) -> Pipeline | None:
    made = Pipeline.from_spec(given) if isinstance(given, str) else given
    if not isinstance(made, Pipeline):
        raise ValueError(
            f"pipeline: got {given!r}; allowed are a Pipeline, a spec, or a mapping of layers to those: pass one"
        )
    return made if made.stages else None


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    def named() -> Iterator[tuple[str, str]]:
        yield "", model.config._attn_implementation
        for name in model.config.sub_configs:
            if (part := getattr(model.config, name, None)) is not None:
                yield name, part._attn_implementation

    return dict(named())
