"""The attention function: a layer's call as the Problems that its pipeline runs, or dense."""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...dispatch import AUTO, NoBackendError, why_not
from ...pipeline import Attend, Pipeline
from ...plan import Plan
from ...problem import Output, Problem
from ...timing import now_ms
from .masks import Carrier, Question, Sequences, added, packed_by
from .schedule import beside


@dataclass(frozen=True)
class LayerCall:
    """What one layer's attention did in one prefill call; of packed sequences, with one of them."""

    layer: int
    problem: Problem  # padding taken out
    plan: Plan  # Plan() for a dense layer
    output: Output | None  # the plan's, before a layer adds its sinks; None where the model's own attention ran
    ms: float  # deciding and attending


Watch = Callable[[LayerCall], None]


@dataclass(frozen=True)
class Layer:
    """What an attention module does in a prefill."""

    pipeline: Pipeline | None = None  # None: dense
    watch: Watch | None = None
    eager: bool = False  # dense runs through the model's eager attention, because it has no SDPA
    heads_group: "dist.ProcessGroup | None" = None  # the ranks that hold the layer's other heads
    dense: dict[int, str] = field(default_factory=dict)  # by layer, why it ran dense in spite of its pipeline; shared


DENSE = Pipeline([Attend(backend="flash")])  # of dense layers on a GPU: as fast as anything there

LAYERS: WeakKeyDictionary[nn.Module, Layer] = WeakKeyDictionary()  # attention modules of sparsified models


@dataclass(frozen=True)
class _Call:
    """The arguments of the attention function."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    scaling: float | None
    is_causal: bool | None
    kwargs: dict[str, Any]

    def filled(self, question: Question) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, and the keys and values that there are."""
        return self.query, self.key[:, :, : question.keys], self.value[:, :, : question.keys]

    def packed(self) -> Sequences | None:
        """The packed sequences that the caller names."""
        said = self.kwargs.get("cu_seq_lens_q"), self.kwargs.get("seq_idx")
        make = lambda: packed_by(self.query.shape[2], *said)  # noqa: E731
        return self.mask.once("packed", make) if isinstance(self.mask, Carrier) else make()


def attention(
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
    """query [B, H, Q, D], key [B, G, K, D], value [B, G, K, Dv] -> [B, Q, H, Dv]; local heads, never the config's.

    Raises ValueError for a sparse layer in training, or with inputs that need gradients.
    """
    call = _Call(module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)
    return _dense(call, layer_of(module).eager) if query.shape[2] == 1 else _prefill(call, layer_of(module))


def layer_of(module: nn.Module) -> Layer:
    """What `sparsify` chose for a module; without it, what the file beside its model says."""
    if module not in LAYERS:
        config, number = getattr(module, "config", None), getattr(module, "layer_idx", None)
        told = (layer.dense for other, layer in LAYERS.items() if getattr(other, "config", None) is config)
        pipeline = beside(config, number) if isinstance(number, int) else None  # an encoder's layers have no number
        LAYERS[module] = Layer(pipeline, dense=next(told, {}))
    return LAYERS[module]


def index(module: nn.Module) -> int:
    """The number of an attention module's layer."""
    return int(module.layer_idx)  # type: ignore[arg-type]


@torch.compiler.disable(reason="sparsekit: a sparse prefill is no single graph; compile without fullgraph=True")
def _prefill(call: _Call, layer: Layer) -> tuple[Tensor, Tensor | None]:
    pipeline = layer.pipeline or (DENSE if call.query.is_cuda and not _learns(call) else None)
    if pipeline is not None:
        reason = _why_dense(call, pipeline, layer)
        if reason is None:
            _require_inference(call)
            try:
                return _sparse(call, pipeline, layer), None
            except NoBackendError as refusal:
                reason = str(refusal)
        if layer.pipeline is not None:
            _say(call.module, layer, reason)
    started = now_ms(call.query.device) if layer.watch else 0.0
    answer = _dense(call, layer.eager)
    if layer.watch and isinstance(call.mask, Carrier) and isinstance(call.mask.question, Question):
        ms = now_ms(call.query.device) - started
        problems = [problem for _, problem in _problems(call, call.mask.question, layer)]
        if len(problems) == 1:
            layer.watch(LayerCall(index(call.module), problems[0], Plan(), None, ms))
    return answer


def _why_dense(call: _Call, pipeline: Pipeline, layer: Layer) -> str | None:
    """In words, why a pipeline of the layer cannot run this call; None if it can."""
    mask, config = call.mask, call.module.config
    for name in ("softcap", "position_bias"):
        if call.kwargs.get(name) is not None:
            return f"its scores have a {name}, which no sparse kernel has"
    if call.kwargs.get("output_attentions"):
        return "output_attentions=True asks for attention weights, and a sparse layer has none"
    if not (call.is_causal if call.is_causal is not None else getattr(call.module, "is_causal", True)):
        return "it is not causal"
    if not isinstance(mask, Carrier):
        return "the model gave it no mask" if mask is None else "it has a mask of the caller's or the model's own"
    question = mask.question
    if isinstance(question, str):
        return question
    if (call.query.shape[2], call.key.shape[2]) != (mask.asked["q_length"], mask.asked["kv_length"]):
        return "its keys are not those that its mask speaks of"
    sequences = call.packed() or question.sequences
    if sequences and question.padding != Plan():
        return "its packed sequences are padded"
    tokens = [type(s).__name__ for s in pipeline.stages if getattr(s, "chooses", None) != "blocks"]
    heads = getattr(config, "num_attention_heads", call.query.shape[1])
    if tokens and layer.heads_group is None and call.query.shape[1] != heads:
        return (
            f"it holds {call.query.shape[1]} of {heads} heads, and {tokens[0]} needs to know which ranks hold the "
            "others: load the model with a tp_plan, then sparsify it"
        )
    return None


def _learns(call: _Call) -> bool:
    inputs = (call.query, call.key, call.value)
    return call.module.training or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def _require_inference(call: _Call) -> None:
    if _learns(call):
        what = "a model in training mode" if call.module.training else "inputs that need gradients"
        raise ValueError(
            f"pipeline: got {what}; a sparse pipeline is for inference: call model.eval() and the model under "
            "torch.no_grad(), or restore() it for training"
        )


def _say(module: nn.Module, layer: Layer, reason: str) -> None:
    """Warn once of a reason, naming the first layer that has it."""
    if reason not in layer.dense.values():
        warnings.warn(
            f"sparsekit: layer {index(module)} ({type(module).__name__}) runs dense: {reason}. Said once for all such "
            "layers: sparsify(...).dense lists them",
            stacklevel=2,
        )
    layer.dense[index(module)] = reason


def _problems(call: _Call, question: Question, layer: Layer) -> Iterator[tuple[Plan, Problem]]:
    """The problems of a call, row by row and along its tokens, each with what has taken its padding out."""
    q, k, v = call.filled(question)

    def problem(q: Tensor, k: Tensor, v: Tensor) -> Problem:
        p = Problem.of(q, k, v, scale=call.scaling, window=question.window)
        if question.first:
            p = replace(p, q_pos=p.q_pos + question.first, k_pos=p.k_pos + question.first)
        return replace(p, heads_group=layer.heads_group)

    sequences = call.packed() or question.sequences
    if sequences is None:
        yield question.padding, question.padding.compress(problem(q, k, v))
        return
    for b, bounds in enumerate(sequences):
        for i, j in zip(bounds, bounds[1:], strict=False):
            yield Plan(), problem(*(x[b : b + 1, :, i:j] for x in (q, k, v)))


def _sparse(call: _Call, pipeline: Pipeline, layer: Layer) -> Tensor:
    """[B, Q, H, Dv]; padding queries get zeros."""
    assert isinstance(call.mask, Carrier) and isinstance(call.mask.question, Question)
    if not layer.watch and (o := _at_once(call, call.mask.question, pipeline)) is not None:
        return o
    outputs = []
    for padding, problem in _problems(call, call.mask.question, layer):
        started = now_ms(call.query.device) if layer.watch else 0.0
        if call.query.is_cuda and pipeline.attend.backend == "auto" and (reason := no_gpu_kernel(problem)):
            raise NoBackendError(reason)
        plan, output = pipeline.run(problem)
        if layer.watch:
            layer.watch(LayerCall(index(call.module), problem, plan, output, now_ms(call.query.device) - started))
        outputs.append(_with_sinks(padding.decompress(output), call.kwargs.get("s_aux")))
    whole = outputs[0]
    if len(outputs) > 1:
        whole = torch.cat([o[0].transpose(0, 1) for o in outputs]).unflatten(0, call.query.shape[::2][:2])
        return whole
    return whole.transpose(1, 2).contiguous()


def _at_once(call: _Call, question: Question, pipeline: Pipeline) -> Tensor | None:
    """[B, Q, H, Dv] where the shapes alone say dense, and one kernel is all there is to it; else None."""
    whole = question.window is None or question.window >= question.keys
    plain = question.padding == Plan() and whole and call.kwargs.get("s_aux") is None
    if not plain or (call.packed() or question.sequences) is not None:
        return None
    q, k, v = call.filled(question)
    kernel = pipeline.dense_kernel(q, k, v, scale=call.scaling)
    return None if kernel is None else kernel(q, k, v).transpose(1, 2).contiguous()


def no_gpu_kernel(problem: Problem) -> str | None:
    """In words, why nothing but plain torch could attend on a GPU, slower than the model's own attention; else None."""
    kernels = [name for name in reversed(AUTO["cuda"]) if name not in AUTO["cpu"]]
    reasons = {}
    for name in kernels:
        reasons[name] = why_not(name, "attend", problem, Plan())
        if reasons[name] is None:
            return None
    return "no GPU kernel can run attend: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _with_sinks(out: Output, sinks: Tensor | None) -> Tensor:
    """The output with a sink logit [H] of no value in each row's softmax."""
    if sinks is None:
        return out.o
    share = torch.sigmoid(out.lse - sinks.to(out.lse.dtype)[:, None])  # of the keys, beside the sink
    return (out.o * share[..., None]).to(out.o.dtype)


def _dense(call: _Call, eager: bool) -> tuple[Tensor, Tensor | None]:
    """By the model's own attention, under the mask that it would have got."""
    kwargs, mask = call.kwargs, call.mask
    how = dict(dropout=call.dropout, scaling=call.scaling, **kwargs)
    inputs = call.module, call.query, call.key, call.value
    weights = kwargs.get("output_attentions", False)
    if eager or weights or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        if isinstance(mask, Carrier):
            mask = mask.for_eager(call.packed(), call.query.dtype)
        elif mask is not None and mask.dtype == torch.bool:
            mask = added(mask, call.query.dtype)
        return sys.modules[type(call.module).__module__].eager_attention_forward(*inputs, mask, **how)
    if isinstance(mask, Carrier):
        mask = mask.for_sdpa(call.packed())
    return sdpa_attention_forward(*inputs, mask, is_causal=call.is_causal, **how)
