"""Put pipelines into a model's layers, and restore the model."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, ref

from torch import nn
from transformers import PreTrainedModel

from ...layers import Given, by_layer, load_pipeline
from .attention import MARK, Layer, Watch, index, register, warn_dense
from .interface import NAME, decides_by_name, goes_through, stock
from .ran import Ran, counted, kept, why_dense

LINES = 4  # most lines of a printed handle about one thing
MISSING = object()  # the value of a slot whose object has no such attribute
IMPLEMENTATION = "_attn_implementation_internal"  # a config's field: the public setter changes all parts' configs too


@dataclass
class Slot:
    """An attribute that sparsify sets, with its values before and after."""

    owner: Any
    name: str
    after: Any
    before: Any = MISSING

    def put(self, value: Any) -> None:
        if value is MISSING:
            self.owner.__dict__.pop(self.name, None)
        else:
            self.owner.__dict__[self.name] = value

    def is_that_of(self, other: "Slot") -> bool:
        return self.owner is other.owner and self.name == other.name


class Change:
    """The slots that one call of sparsify set, with the number of that call."""

    _all: "WeakSet[Change]" = WeakSet()
    _count = 0

    def __init__(self, handle: "Sparsified", slots: list[Slot]) -> None:
        self._handle, self.slots = ref(handle), slots
        Change._count += 1
        self.number = Change._count
        below = [change for change in Change._in_order() if any(change._has(slot) for slot in slots)]
        for change in below:
            if change._handle() is None and change._is_covered():
                change.undo()  # so a loop that creates handles and drops them holds at most one such change
        self._below = [change for change in below if change in Change._all]  # they live as long as this change
        for slot in slots:
            slot.before = slot.owner.__dict__.get(slot.name, MISSING)
            slot.put(slot.after)
        Change._all.add(self)

    @classmethod
    def _in_order(cls) -> "list[Change]":
        return sorted(cls._all, key=lambda change: change.number)

    def _has(self, slot: Slot) -> Slot | None:
        """Return this change's slot for the same attribute, or None."""
        return next((own for own in self.slots if own.is_that_of(slot)), None)

    def _heir(self, slot: Slot) -> Slot | None:
        """Return the slot for the same attribute in the next later change that has one, or None."""
        later = (change._has(slot) for change in Change._in_order() if change.number > self.number)
        return next((heir for heir in later if heir is not None), None)

    def _is_covered(self) -> bool:
        return all(self._heir(slot) is not None for slot in self.slots)

    def undo(self, abandoned: bool = False) -> None:
        """Restore the value of each slot, or pass it on to a later change of the same attribute.

        With `abandoned`, also undo earlier changes of the same attributes whose handles no longer exist.
        """
        for slot in self.slots:
            if (heir := self._heir(slot)) is None:
                slot.put(slot.before)
            else:
                heir.before = slot.before
        Change._all.discard(self)
        for change in reversed(self._below) if abandoned else ():
            if change in Change._all and change._handle() is None:
                change.undo()


class Sparsified:
    """A model with pipelines in it: a context manager, and a handle with `restore()`."""

    def __init__(self, model: nn.Module, layers: Mapping[int, Layer], slots: list[Slot], dense: dict[int, str]) -> None:
        self.dense = dense  # by layer, why it ran dense although it has a pipeline, in the calls so far
        self._name, self._layers, self._depth = type(model).__name__, layers, 0
        self._slots, self._told = slots, False
        self._change: Change | None = None
        self._apply()

    def _apply(self) -> None:
        register()
        if self._change is None:
            self._change = Change(self, [Slot(slot.owner, slot.name, slot.after) for slot in self._slots])

    def restore(self) -> None:
        """Undo this handle's change of the model. Handles of one model may be restored in any order.

        This also undoes earlier calls of `sparsify` whose handles no longer exist, as after a notebook's cell ran
        twice. A second call of `restore` does nothing.
        """
        self._undo(abandoned=True)

    def _undo(self, abandoned: bool, quiet: bool = False) -> None:
        self._depth = 0
        if self._change is not None:
            change, self._change = self._change, None
            change.undo(abandoned)
            if not quiet:
                self._warn_if_all_was_dense()

    def __enter__(self) -> "Sparsified":
        self._apply()
        self._depth += 1
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._undo(abandoned=False, quiet=kind is not None)

    @property
    def _ran(self) -> dict[int, Ran]:
        """The counts of calls so far, by layer, for layers that have a pipeline and were called."""
        return next(iter(self._layers.values())).ran

    def _reasons(self) -> dict[int, str]:
        """Return by layer why it ran dense; the reason may be that its pipeline chose to."""
        chosen = {layer: why_dense(ran, self._layers[layer].pipeline) for layer, ran in sorted(self._ran.items())}
        return {layer: reason for layer, reason in chosen.items() if reason} | self.dense

    def _warn_if_all_was_dense(self) -> None:
        """Warn once if all calls of all layers ran dense, unless an earlier warning gave every reason."""
        calls, reasons = sum(ran.calls for ran in self._ran.values()), self._reasons()
        if self._told or not calls or any(ran.sparse for ran in self._ran.values()) or not {*reasons} - {*self.dense}:
            return
        self._told = True
        why = "; ".join(dict.fromkeys(reasons.values()))
        warnings.warn(f"sparsekit: {self._name} ran dense in all of its prefills: {why}", stacklevel=4)

    def __repr__(self) -> str:
        some = sum(layer.pipeline is not None for layer in self._layers.values())
        state = "sparse" if self._change else "restored"
        return (
            f"<Sparsified {self._name}, {state}: {some} of {len(self._layers)} layers, {counted(self._ran.values())}>"
        )

    def __str__(self) -> str:
        pipelines = {number: layer.pipeline for number, layer in self._layers.items()}
        have = [f"{_ranges(which)}: {'dense' if what is None else what}" for what, which in _grouped(pipelines)]
        ran = list(self._ran.values())
        lines = [f"{self._name}, {'sparse' if self._change else 'restored'}:", *_first(have)]
        lines += [f"  {line}" for line in (counted(ran), kept(ran)) if line]
        return "\n".join(
            lines + _first([f"{_ranges(which)} ran dense: {why}" for why, which in _grouped(self._reasons())])
        )


def sparsify(
    model: nn.Module,
    pipeline: Given | None = None,
    *,
    layers: int | str | Iterable[int | str] | None = None,
    watch: Watch | None = None,
) -> Sparsified:
    """Let a pipeline compute the prefill attention of a model; decode stays dense.

    `model` is a decoder model of transformers, or a module that contains one. `pipeline` is a Pipeline, a recipe's name
    or a spec, for all layers; or a mapping from layers to these. A key of the mapping is a layer's number, a range
    "15-30" that includes both ends, or "default"; layers that it does not name are dense. `layers` limits one pipeline
    to these layers, written like the keys. Without a pipeline, the sparsekit.json in the model's folder names it.
    `watch` is called with a LayerCall after the prefill attention of every layer, in the order they run, if the call
    can be expressed as Problems. A call with at most 32 new tokens over a cache is decode.

    Copies of the model (copy.deepcopy, pickle, replicas) are sparse too; `restore` does not change them, but setting
    their `attn_implementation` does. Parts without such layers, such as a vision tower, keep their own implementation.
    Raises ValueError for a spec that does not parse, a layer that the model lacks or that is named twice, and, with the
    reason, for a model none of whose chosen layers can run a pipeline.
    """
    parts = _Model.of(model)
    if pipeline is None:
        pipeline = load_pipeline(parts.root.name_or_path or "")
    chosen = by_layer(pipeline, sorted(parts.attention), _just(layers))
    own = parts.own_arguments()
    able = [layer for layer, choice in chosen.items() if choice is not None and layer not in own]
    if len(own) == len(chosen) or (not able and any(choice is not None for choice in chosen.values())):
        raise ValueError(
            f"model: got {type(model).__name__}, none of whose chosen layers can run a pipeline: "
            f"{'; '.join(dict.fromkeys(own.values()))}; allowed is a layer that gives any implementation the same "
            "arguments: use the model as it is"
        )
    dense = {layer: reason for layer, reason in own.items() if chosen[layer] is not None}
    group = _heads_group(parts.root)
    ran: dict[int, Ran] = {}
    all_layers = {layer: Layer(chosen[layer], watch, group, dense, ran) for layer in sorted(chosen)}
    handle = Sparsified(model, all_layers, parts.slots(all_layers, own), dense)
    for layer in [layer for i, layer in enumerate(dense) if dense[layer] not in list(dense.values())[:i]]:
        warn_dense(parts.attention[layer][0], dense[layer])
    return handle


@dataclass(frozen=True)
class _Model:
    """The parts of a model that sparsify reads or changes."""

    root: PreTrainedModel  # the outermost model of transformers
    attention: dict[int, list[nn.Module]]  # by layer, the attention modules that go through the interface
    around: list[PreTrainedModel]  # the models that contain these modules

    @classmethod
    def of(cls, model: Any) -> "_Model":
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        root = next((module for module in modules.values() if isinstance(module, PreTrainedModel)), None)
        if root is None:
            raise ValueError(
                f"model: got {model if isinstance(model, str) else type(model).__name__!r}; allowed is a decoder model "
                "of transformers, or a module around one: load it first, with AutoModelForCausalLM.from_pretrained"
            )
        able = {name: x for name, x in modules.items() if goes_through(x) and _number(x) is not None}
        causal = {name: x for name, x in able.items() if getattr(x, "is_causal", True)}
        names = causal or able  # some decoders have an encoder's flag: then the mask of each call decides
        attention: dict[int, list[nn.Module]] = {}
        for module in names.values():
            attention.setdefault(index(module), []).append(module)
        if not attention:
            raise ValueError(
                f"model: got {type(model).__name__}, none of whose layers can run a pipeline: {_why(modules)}; allowed "
                "are decoder models whose attention goes through transformers' AttentionInterface: use the model dense"
            )
        outer = {part for name in names for part in _outer(name)}
        around = [module for name, module in modules.items() if name in outer and isinstance(module, PreTrainedModel)]
        return cls(root, attention, around)

    def own_arguments(self) -> dict[int, str]:
        """Return the layers that must keep their own implementation, with the reasons."""
        return {
            layer: f"its {type(module).__name__} prepares other arguments for an implementation of another name"
            for layer, modules in self.attention.items()
            for module in modules
            if decides_by_name(module)
        }

    def slots(self, layers: Mapping[int, Layer], own: Mapping[int, str]) -> list[Slot]:
        """Return the slots to set for these layers. A part of the model may refuse the name with a ValueError."""
        register()
        for part in self.around:
            part.get_correct_attn_implementation(NAME)
        slots, configs = [], {id(part.config): part.config for part in self.around}
        for layer, modules in self.attention.items():
            for module in modules:
                if layer in own:
                    config: Any = copy.copy(module.config)
                    config.__dict__[IMPLEMENTATION] = stock(module.config)
                    slots.append(Slot(module, "config", config))
                else:
                    slots.append(Slot(module, MARK, layers[layer]))
                    configs[id(module.config)] = module.config  # type: ignore[assignment]
        return slots + [Slot(config, IMPLEMENTATION, NAME) for config in configs.values()]


def _number(module: nn.Module) -> int | None:
    """Return the module's layer number, or None if it has no such number."""
    number = getattr(module, "layer_idx", None)
    return number if isinstance(number, int) else None


def _outer(name: str) -> Iterator[str]:
    """Yield the names of all modules that contain a module: for "a.b.c" they are "", "a", "a.b"."""
    parts = name.split(".")
    return (".".join(parts[:i]) for i in range(len(parts)))


def _why(modules: Mapping[str, nn.Module]) -> str:
    """Return in words why none of these modules is a layer that can run a pipeline."""
    attention = [module for module in modules.values() if "attention" in type(module).__name__.lower()]
    names = lambda some: ", ".join(list(dict.fromkeys(type(module).__name__ for module in some))[:3])  # noqa: E731
    if apart := [module for module in attention if not goes_through(module) and hasattr(module, "layer_idx")]:
        return f"its {names(apart)} computes attention itself and asks no AttentionInterface"
    if other := [module for module in modules.values() if goes_through(module)]:
        return f"its {names(other)} has no number (layer_idx)"
    if attention:
        return f"its {names(attention)} computes attention itself and asks no AttentionInterface"
    return "it has no attention"


def _just(layers: Any) -> Any:
    """Return the layers as None, a number, a text or a list. Raises ValueError for anything else."""
    if layers is None or isinstance(layers, int | str):
        return layers
    if not isinstance(layers, Iterable):
        raise ValueError(
            f'layers: got {layers!r}; allowed are a number, a range like "15-30", or a list of those: use one of these'
        )
    return list(layers)


def _grouped(values: Mapping[int, Any]) -> list[tuple[Any, list[int]]]:
    """Return each distinct value with the layers that have it, in the order of the layers."""
    order = sorted(values)
    return [(what, [x for x in order if values[x] == what]) for what in dict.fromkeys(values[x] for x in order)]


def _first(texts: list[str]) -> list[str]:
    """Return lines about layers, at most LINES of them."""
    more = [f"  and {len(texts) - LINES + 1} more"] if len(texts) > LINES else []
    return [f"  layers {line}" for line in texts[: LINES - len(more)]] + more


def _ranges(layers: Iterable[int]) -> str:
    """Write layers as ranges: [0, 1, 2, 5] is "0-2, 5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _heads_group(model: PreTrainedModel) -> Any:
    """Return the ranks over which tensor parallelism splits each layer's heads, or None if there is one rank."""
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None or (model.tp_size or 1) == 1:
        return None
    return (mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group()
