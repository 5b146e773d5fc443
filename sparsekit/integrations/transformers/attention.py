"""The attention function that transformers calls: it makes Problems of a layer's call for its pipeline, or runs dense.

`attention` judges a call once per forward pass, because the layers of a pass are alike. If the layer's pipeline can run
the call, its batch becomes Problems without padding. If not, the model's own attention runs, and a warning says why.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import TransformersKwargs

from ... import operators
from ...by_value import ByValue
from ...dispatch import NoBackendError, no_gpu_kernel
from ...graphs import is_held
from ...inference import inference_only, needs_gradients
from ...layers import FILE, by_layer, load_pipeline
from ...pipeline import Pipeline
from ...plan import Plan
from ...policies import Attend
from ...problem import Output, Problem, shapes
from ...timing import now_ms
from .interface import NAME, decides_by_name, eager_forward, gives, stock
from .masks import Carrier, Question, Rows, Sequences, added, is_traced, mask, packed_by
from .ran import Ran

DECODE = 32  # at most this many new tokens over a cache are decode, as in the verification of a draft
MARK = "_sparsekit"  # the attribute of an attention module that holds its Layer: a copy of the module has it too

# the keyword arguments of transformers' attention functions that sparsekit understands
UNDERSTOOD = {"sliding_window", "s_aux", "softcap", "position_bias", "seq_idx", *TransformersKwargs.__annotations__}


@dataclass(frozen=True, eq=False, repr=False)
class LayerCall(ByValue):
    """One layer's attention in one prefill call, for rows of the batch that are alike, or for one packed sequence."""

    layer: int
    problem: Problem  # without padding
    plan: Plan  # Plan() for a dense layer
    output: Output | None  # before the layer's sink logits are applied; None if the model's own attention ran
    ms: float  # time to decide and attend


Watch = Callable[[LayerCall], None]


@dataclass(frozen=True)
class Layer:
    """How an attention module runs a prefill. A copy of the module has the same pipeline, but no `watch`."""

    pipeline: Pipeline | None = None  # None: dense
    watch: Watch | None = None
    heads_group: "dist.ProcessGroup | None" = None  # the ranks that hold the layer's other heads
    dense: dict[int, str] = field(default_factory=dict)  # by layer, why its pipeline did not run; shared by all layers
    ran: dict[int, Ran] = field(default_factory=dict, compare=False)  # by layer, its counts; shared by all layers

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layer":
        return Layer(self.pipeline, None, self.heads_group, copy.deepcopy(self.dense, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.pipeline and self.pipeline.named_form(), self.dense)


def _unpickled(steps: list[Any] | None, dense: dict[int, str]) -> Layer:
    register()  # another process may not know the name yet
    return Layer(None if steps is None else Pipeline(steps), dense=dense)


def register() -> None:
    """Make `attn_implementation="sparsekit"` known to transformers; `sparsify` calls it.

    A model that has this name without `sparsify` runs dense and warns, unless its folder has a sparsekit.json. The
    language model inside a model of several parts runs dense even then, because its config does not know the folder.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


DENSE = Pipeline([Attend(backend="flash")])  # for dense layers on a GPU: the fastest dense attention there


class _Call(NamedTuple):
    """The arguments of the attention function. A tuple: a frozen dataclass takes three times as long to make."""

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
        """Return the queries, and the filled slots of keys and values."""
        if question.keys == self.key.shape[2]:  # only a static cache has empty slots
            return self.query, self.key, self.value
        return self.query, self.key[:, :, : question.keys], self.value[:, :, : question.keys]

    def packed(self) -> Sequences | None:
        """Return the packed sequences that the caller describes, or None."""
        said = self.kwargs.get("cu_seq_lens_q"), self.kwargs.get("seq_idx")
        if said[0] is None and said[1] is None:
            return None
        question = self.mask.question if isinstance(self.mask, Carrier) else None
        keys = question.keys if isinstance(question, Question) else self.key.shape[2]
        make = lambda: packed_by(self.query.shape[0], self.query.shape[2], keys, *said)  # noqa: E731
        if not isinstance(self.mask, Carrier):
            return make()
        return self.mask.once(("packed", *map(id, said)), lambda: (make(), said))[
            0
        ]  # `said` is held, so ids stay unique

    def is_decode(self) -> bool:
        """Return whether these are a few new tokens over a cache."""
        question = self.mask.question if isinstance(self.mask, Carrier) else None
        new = self.query.shape[2]  # if traced, a comparison with a number would become a guard
        return isinstance(question, Question) and question.keys > new and new <= DECODE


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
    """Compute attention of query [B, H, Q, D] over key [B, G, K, D] and value [B, G, K, Dv]: [B, Q, H, Dv] and None.

    H and G are the heads of these tensors: with tensor parallelism fewer than the config's. The model's own attention
    may return its weights in place of None. Raises ValueError for a sparse layer in training mode, for a backward pass
    through one, and for a tensor argument that SDPA would drop.
    """
    call = _Call(module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)
    if query.shape[2] == 1:
        return _dense(call)
    return _traced(call) if is_traced(query) else _prefill(call)


def layer_of(module: nn.Module) -> Layer:
    """Return the Layer that `sparsify` set for a module, or one by the sparsekit.json in its model's folder."""
    if (layer := module.__dict__.get(MARK)) is not None:
        return layer
    number = getattr(module, "layer_idx", None)
    if not isinstance(number, int) or not getattr(module, "is_causal", True):  # of an encoder, or cross attention
        return Layer()
    module.__dict__[MARK] = layer = _by_name(module, number)
    return layer


def _by_name(module: nn.Module, number: int) -> Layer:
    """Return the Layer of a module whose model has the implementation's name without `sparsify`."""
    config = getattr(module, "config", None)
    if decides_by_name(module):
        raise ValueError(
            f'attn_implementation: got "{NAME}" for {type(module).__name__}, which prepares other arguments for an '
            "implementation of that name than for its own; allowed is its own: load the model without "
            "attn_implementation"
        )
    folder = getattr(config, "name_or_path", "") or ""
    if not (folder and (Path(folder) / FILE).is_file()):
        warnings.warn(
            f'sparsekit: {type(module).__name__} has attn_implementation="{NAME}" by its name alone and runs dense: '
            f"there is no {FILE} in {folder!r}, seen from the current folder. Call sparsify(model, pipeline), or load "
            "the model from a folder with that file, by its absolute path",
            stacklevel=2,
        )
    return Layer(_beside(config, number))


def index(module: nn.Module) -> int:
    """Return the number of an attention module's layer."""
    return int(module.layer_idx)  # type: ignore[arg-type]


def _beside(config: Any, layer: int) -> Pipeline | None:
    """Return a layer's pipeline by the sparsekit.json in its model's folder, or None for dense or without a file."""
    folder = getattr(config, "name_or_path", "") or ""
    path = Path(folder) / FILE
    if not folder or not path.is_file():
        return None
    return _of_file(folder, path.stat().st_mtime_ns, config.num_hidden_layers).get(
        layer
    )  # a changed file is read again


@lru_cache(maxsize=64)
def _of_file(folder: str, written: int, layers: int) -> dict[int, Pipeline | None]:
    return by_layer(load_pipeline(folder), list(range(layers)))


@torch.compiler.disable(reason="sparsekit: a sparse prefill is no single graph; compile without fullgraph=True")
def _prefill(call: _Call) -> tuple[Tensor, Tensor | None]:
    if call.is_decode():
        return _dense(call)
    layer = layer_of(call.module)
    pipeline = layer.pipeline or (DENSE if call.query.is_cuda and not _learns(call) else None)
    judged = _judged(call, pipeline, layer.heads_group)
    ran = None
    if layer.pipeline is not None:
        ran = layer.ran.setdefault(index(call.module), Ran())
        ran.calls += 1
    if judged.own is None and pipeline is not None:
        _require_evaluation(call)  # for each layer, as for gradients: layers that share a _Judged may differ in this
        try:
            return _without_backward(call, lambda: _sparse(call, pipeline, layer, judged.plain, ran)), None
        except NoBackendError as refusal:
            judged = _by_its_own(call, str(refusal))
    if judged.reason is not None and layer.pipeline is not None:
        _say(call.module, layer, judged.reason)
    _require_none_dropped(call, judged.dropped)
    assert judged.own is not None
    started = now_ms(call.query.device) if layer.watch else 0.0
    answer = _by(call, *judged.own)
    if layer.watch and isinstance(call.mask, Carrier) and isinstance(call.mask.question, Question):
        ms = now_ms(call.query.device) - started
        problems = [problem for *_, problem in _problems(call, call.mask.question, Pipeline(), layer.heads_group)]
        if len(problems) == 1:
            layer.watch(LayerCall(index(call.module), problems[0], Plan(), None, ms))
    return answer


Own = tuple[Callable[..., Any], Tensor | None, dict[str, bool]]  # an attention function, its mask and its causal flag


@dataclass(frozen=True)
class _Judged:
    """How a call runs, and why."""

    plain: bool = False  # the pipeline runs the call as one causal problem, without padding, packing, window or sinks
    own: Own | None = None  # how the model's own attention runs the call; None: the pipeline runs it
    reason: str | None = None  # why the pipeline, if there is one, cannot run the call
    dropped: str | None = None  # a tensor that the model gives its attention, but its own attention ignores


def _judged(call: _Call, pipeline: Pipeline | None, heads_group: Any) -> _Judged:
    """Return how a call runs. All layers of a forward pass that are alike share one judgement, which saves host time.

    Layers are alike if they agree in everything that the judgement depends on besides the mask: the pipeline, the
    ranks, the module's class, config and flag, the shapes, and every other argument. Arguments are compared by
    identity, because a forward pass gives all layers the same objects.
    """
    if not isinstance(call.mask, Carrier):
        return _judge(call, pipeline, heads_group)
    module, kwargs, config = call.module, call.kwargs, getattr(call.module, "config", None)
    alike = (
        id(pipeline), id(heads_group), id(config), type(module), getattr(module, "is_causal", True), call.is_causal,
        call.query.dtype, call.query.shape, call.key.shape, *kwargs, *map(id, kwargs.values()),
    )  # fmt: skip
    if (entry := call.mask.found.get(alike)) is None:
        # the entry holds these objects, because an id is unique only while its object lives
        entry = call.mask.found[alike] = _judge(call, pipeline, heads_group), pipeline, heads_group, config, kwargs
    return entry[0]


def _judge(call: _Call, pipeline: Pipeline | None, heads_group: Any) -> _Judged:
    reason = None if pipeline is None else _why_dense(call, pipeline, heads_group)
    return _by_its_own(call, reason) if pipeline is None or reason else _Judged(plain=_is_plain(call))


def _by_its_own(call: _Call, reason: str | None) -> _Judged:
    return _Judged(False, _own(call), reason, _dropped(call))


def _why_dense(call: _Call, pipeline: Pipeline, heads_group: Any) -> str | None:
    """Return in words why a pipeline cannot run this call, or None if it can. `heads_group` is the layer's."""
    mask = call.mask
    for name in ("softcap", "position_bias"):
        if call.kwargs.get(name) is not None:
            return f"its scores have a {name}, which no sparse kernel has"
    if unknown := _unknown(call):
        return f"it is given {', '.join(map(repr, unknown))}, which sparsekit does not understand"
    if call.kwargs.get("output_attentions"):
        return "output_attentions=True asks for attention weights, and a sparse layer has none"
    if not _is_causal(call):
        return "it is not causal"
    if not isinstance(mask, Carrier):
        return "the model gave it no mask" if mask is None else "it has a mask of the caller's or the model's own"
    question = mask.question
    if isinstance(question, str):
        return question
    if (call.query.shape[2], call.key.shape[2]) != (mask.arguments["q_length"], mask.arguments["kv_length"]):
        return "its mask is for another number of queries or keys"
    if not is_traced(call.query) and (call.packed() or question.sequences) and question.padded:
        return "its packed sequences are padded"
    tokens = [type(s).__name__ for s in pipeline.stages if getattr(s, "chooses", None) != "blocks"]
    alone = not (dist.is_available() and dist.is_initialized())
    if alone or not tokens or heads_group is not None:
        return None
    heads = getattr(call.module.config, "num_attention_heads", call.query.shape[1])
    if call.query.shape[1] != heads:
        return (
            f"it holds {call.query.shape[1]} of {heads} heads, and {tokens[0]} needs to know which ranks hold the "
            "others: load the model with a tp_plan, then sparsify it"
        )
    return None


def _is_causal(call: _Call) -> bool:
    """Return whether the layer's own implementation hides later keys in this call.

    A layer may pass is_causal=False whenever it gets a mask, so the module's flag counts. If that is False too, SDPA
    hides later keys only if it gets a mask; often it gets None.
    """
    flag = bool(getattr(call.module, "is_causal", True))
    if not isinstance(call.mask, Carrier) or not isinstance(call.mask.question, Question):
        return flag if call.is_causal is None else call.is_causal
    return flag or _is_eager(call) or call.mask.for_sdpa(call.packed()) is not None


def _unknown(call: _Call) -> list[str]:
    """Return the names of arguments that the layer's own code gives and that sparsekit does not understand.

    Other arguments come from the model's caller, such as images, and no implementation reads them.
    """
    given = (name for name, value in call.kwargs.items() if value is not None)
    return [name for name in given if name not in UNDERSTOOD and gives(call.module, name)]


def _dropped(call: _Call) -> str | None:
    """Return the name of a tensor that the layer's code gives and SDPA drops, or None.

    The layer might not give it to an implementation named "sdpa".
    """
    names = [name for name in _unknown(call) if isinstance(call.kwargs[name], Tensor)]
    return None if not names or _is_eager(call) else names[0]


def _require_none_dropped(call: _Call, dropped: str | None) -> None:
    if dropped is not None:
        raise ValueError(
            f"model: {type(call.module).__name__} gives its attention {dropped!r}, which neither sparsekit nor SDPA "
            'understands; allowed is the model\'s own attention: restore() it, or leave the layer out of "layers"'
        )


def _learns(call: _Call) -> bool:
    return call.module.training or needs_gradients(call.query, call.key, call.value)


def _require_evaluation(call: _Call) -> None:
    if call.module.training:
        raise ValueError(
            "pipeline: got a model in training mode; a sparse pipeline is for inference: call model.eval(), or "
            "restore() it for training"
        )


def _without_backward(call: _Call, attend: Callable[[], Tensor]) -> Tensor:
    """Return the result of `attend`. A backward pass through it raises ValueError."""
    if not needs_gradients(call.query, call.key, call.value):
        return attend()
    with torch.no_grad():
        o = attend()
    return inference_only(o, call.query, call.key, call.value)


def _say(module: nn.Module, layer: Layer, reason: str) -> None:
    """Note why a layer runs dense, and warn of each reason once, naming the first layer that has it."""
    if reason not in layer.dense.values():
        warn_dense(module, reason)
    layer.dense[index(module)] = reason


def warn_dense(module: nn.Module, reason: str) -> None:
    """Warn that a layer runs dense."""
    warnings.warn(
        f"sparsekit: layer {index(module)} ({type(module).__name__}) runs dense: {reason}. Other layers with this "
        "reason get no warning: sparsify(...).dense lists them",
        stacklevel=3,
    )


def _problems(
    call: _Call, question: Question, pipeline: Pipeline, heads_group: Any
) -> Iterator[tuple[Tensor | None, Plan, Problem]]:
    """Yield each problem of a call with the rows of the batch it covers (None: all) and the plan of their padding.

    Problems of packed sequences come row by row, and within a row in the order of its tokens.
    """
    q, k, v = call.filled(question)
    sequences = call.packed() or question.sequences
    if sequences is not None:
        yield from _apart(q, k, v, question, sequences, call.scaling, heads_group)
        return
    least = _least(pipeline)
    make = lambda: question.rows(q.shape[2], least)  # noqa: E731
    for rows in call.mask.once(("rows", least), make) if isinstance(call.mask, Carrier) else make():
        yield rows.index, rows.padding, _problem(q, k, v, question, rows, call.scaling, heads_group)


WHOLE = Rows(None, Plan(), None, None)  # all rows, no padding, no window


def _least(pipeline: Pipeline) -> int:
    """Return the pipeline's break-even in keys, or 0 if it is "auto"."""
    limit = pipeline.attend.break_even
    return limit if isinstance(limit, int) else 0


def _apart(
    q: Tensor, k: Tensor, v: Tensor, question: Question, sequences: Sequences, scale: float | None, heads_group: Any
) -> Iterator[tuple[None, Plan, Problem]]:
    """Yield one problem for each packed sequence."""
    whole = Rows(None, Plan(), None, question.window)
    for b, bounds in enumerate(sequences):
        for i, j in zip(bounds, bounds[1:], strict=False):
            queries, keys, values = (x[b : b + 1, :, i:j] for x in (q, k, v))
            yield None, Plan(), _problem(queries, keys, values, question, whole, scale, heads_group)


def _problem(
    q: Tensor, k: Tensor, v: Tensor, question: Question, rows: Rows, scale: float | None, heads_group: Any
) -> Problem:
    """Return the problem of some rows without their padding. Positions are those of each row's own sequence."""
    if rows.index is not None:
        q, k, v = (x.index_select(0, rows.index) for x in (q, k, v))
    p = Problem.of(q, k, v, scale=scale, sliding_window=rows.window)
    if heads_group is not None:
        p = replace(p, heads_group=heads_group)
    if question.first and rows.place is None:
        p = replace(p, q_pos=p.q_pos + question.first, k_pos=p.k_pos + question.first)
    if rows.place is None:
        return p
    return rows.padding.compress(replace(p, q_pos=rows.place[..., -q.shape[2] :], k_pos=rows.place, gapless=False))


def _sparse(call: _Call, pipeline: Pipeline, layer: Layer, plain: bool, ran: Ran | None) -> Tensor:
    """Run the pipeline for a call and return [B, Q, H, Dv]; padding queries get zeros."""
    assert isinstance(call.mask, Carrier) and isinstance(call.mask.question, Question)
    question = call.mask.question
    if plain and not layer.watch:
        if (o := _at_once(call, question, pipeline, layer, ran)) is not None:
            return o
        problem = _problem(*call.filled(question), question, WHOLE, call.scaling, layer.heads_group)
        plan, out = _run(pipeline, problem)
        if ran:
            ran.note([plan], problem.q, problem.k)
        return out.o.transpose(1, 2).contiguous()
    outputs, indices, plans = [], [], []
    for rows, padding, problem in _problems(call, question, pipeline, layer.heads_group):
        started = now_ms(call.query.device) if layer.watch else 0.0
        plan, output = _run(pipeline, problem)
        if layer.watch:
            layer.watch(LayerCall(index(call.module), problem, plan, output, now_ms(call.query.device) - started))
        outputs.append(padding.decompress(output))
        indices.append(rows)
        plans.append(plan)
    if ran:
        ran.note(plans, problem.q, problem.k)
    whole = _together(outputs, indices, call.query.shape[0])
    return _with_sinks(whole, call.kwargs.get("s_aux")).transpose(1, 2).contiguous()


def _run(pipeline: Pipeline, problem: Problem) -> tuple[Plan, Output]:
    """Run the pipeline. Raises NoBackendError if only the reference could run on a GPU: the model's own is faster."""
    if problem.q.is_cuda and pipeline.attend.backend == "auto" and (reason := no_gpu_kernel(problem, Plan())):
        raise NoBackendError(reason)
    return pipeline.run(problem)


def _together(outputs: list[Output], indices: list[Tensor | None], batch: int) -> Output:
    """Join outputs of groups of rows, or, if no rows are named, of packed sequences in their order."""
    if len(outputs) == 1:
        return outputs[0]
    named = [rows for rows in indices if rows is not None]
    if named:
        place = torch.cat(named).argsort()
        return Output(torch.cat([x.o for x in outputs])[place], torch.cat([x.lse for x in outputs])[place])
    o, lse = (torch.cat([x[0] for x in part], 1) for part in zip(*((x.o, x.lse) for x in outputs), strict=True))
    return Output(o.unflatten(1, (batch, -1)).transpose(0, 1), lse.unflatten(1, (batch, -1)).transpose(0, 1))


def _at_once(
    call: _Call, question: Question, pipeline: Pipeline, layer: Layer, ran: Ran | None = None
) -> Tensor | None:
    """Run the call and return [B, Q, H, Dv] if one kernel or one graph does it; else return None."""
    q, k, v = call.filled(question)
    alone = layer.heads_group is None and not question.first  # a graph supports no other ranks and no later first slot
    find = pipeline.known_call if alone else pipeline.dense_kernel
    kernel = find(q, k, v, scale=call.scaling)
    if kernel is None:
        return None
    if ran:
        ran.note(None if is_held(kernel) else [Plan()], q, k)
    return kernel(q, k, v).transpose(1, 2).contiguous()


def _is_plain(call: _Call) -> bool:
    """Return whether a call is one causal problem, without padding, packed sequences, window or sink logits."""
    question = call.mask.question if isinstance(call.mask, Carrier) else None
    if not isinstance(question, Question) or call.kwargs.get("s_aux") is not None or question.padded:
        return False
    whole = question.window is None or question.window >= question.keys
    return whole and (call.packed() or question.sequences) is None


# --- in a model that is traced ----------------------------------------------------------------------------------------


def _traced(call: _Call) -> tuple[Tensor, Tensor | None]:
    """Run a prefill of tensors without values as one operator, which decides when it runs with values."""
    layer = layer_of(call.module)
    if layer.pipeline is None or call.is_decode():
        return _dense(call)
    reason = _why_dense(call, layer.pipeline, layer.heads_group)
    if reason is None and layer.heads_group is not None:
        reason = "an operator cannot hold the ranks of tensor parallelism"
    if reason is None:
        _require_evaluation(call)
        try:
            spec = layer.pipeline.to_spec()
        except ValueError as refusal:
            reason = str(refusal)
    if reason is not None:
        _say(call.module, layer, reason)
        return _dense(call)
    assert isinstance(call.mask, Carrier) and isinstance(call.mask.question, Question)
    question = call.mask.question
    call.packed()  # it raises ValueError for packed sequences that the caller describes
    inputs = *call.filled(question), question.real, question.ids, spec, call.scaling, question.window, question.first
    o, lse = prefill(*inputs)
    return _with_sinks(Output(o, lse), call.kwargs.get("s_aux")).transpose(1, 2).contiguous(), None


@torch.library.custom_op("sparsekit::prefill", mutates_args=())
def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor | None,
    ids: Tensor | None,
    spec: str,
    scale: float | None,
    window: int | None,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Compute causal attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv] by the pipeline of a spec.

    `real` [B, first + K] is false where a slot of the sequence is padding; `first` is the slot of the first key, and
    `window` the keys a query sees, itself included. `ids` [B, K] numbers packed sequences, without padding. Returns the
    output [B, H, Q, Dv], zero for padding, and the log-sum-exp [B, H, Q], float32 or wider.
    """
    pipeline, question = Pipeline.from_spec(spec), Question(k.shape[2], first, window, real, ids)
    sequences = question.sequences
    if sequences is None or all(len(bounds) == 2 for bounds in sequences):
        groups = question.rows(q.shape[2], _least(pipeline))
        problems = [(r.index, r.padding, _problem(q, k, v, question, r, scale, None)) for r in groups]
    else:
        problems = list(_apart(q, k, v, question, sequences, scale, None))
    outputs = [padding.decompress(pipeline.run(problem)[1]) for _, padding, problem in problems]
    whole = _together(outputs, [rows for rows, *_ in problems], q.shape[0])
    return whole.o.contiguous(), whole.lse.contiguous()


@prefill.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return shapes(q, v)


operators.refuse_backward(prefill)


def _with_sinks(out: Output, sinks: Tensor | None) -> Tensor:
    """Return the output after adding a sink logit [H], which has no value vector, to each query's softmax."""
    if sinks is None:
        return out.o
    share = torch.sigmoid(out.lse - sinks.to(out.lse.dtype)[:, None])  # the keys' part of the attention mass
    return (out.o * share[..., None]).to(out.o.dtype)


def _is_eager(call: _Call) -> bool:
    """Return whether the model's own attention for this call is its eager one."""
    given = call.kwargs.get
    if given("output_attentions") or given("softcap") is not None or given("s_aux") is not None:
        return True
    return stock(getattr(call.module, "config", None)) == "eager"


def _dense(call: _Call) -> tuple[Tensor, Tensor | None]:
    """Run the model's own attention with the mask that it gets without sparsekit."""
    return _by(call, *_own(call))


def _by(call: _Call, attend: Callable[..., Any], mask: Tensor | None, flag: dict[str, bool]) -> Any:
    return attend(
        call.module, call.query, call.key, call.value, mask, dropout=call.dropout, scaling=call.scaling, **flag,
        **call.kwargs,
    )  # fmt: skip


def _own(call: _Call) -> Own:
    """Return the model's own attention function, its mask without sparsekit, and its causal flag if it takes one."""
    mask = call.mask
    eager = eager_forward(call.module) if _is_eager(call) else None
    if eager is not None:
        if isinstance(mask, Carrier):
            mask = mask.for_eager(call.packed(), call.query.dtype)
        elif mask is not None and mask.dtype == torch.bool:
            mask = added(mask, call.query.dtype)
        return eager, mask, {}
    if isinstance(mask, Carrier):
        mask = mask.for_sdpa(call.packed())
    return sdpa_attention_forward, mask, {"is_causal": _is_causal(call)}
