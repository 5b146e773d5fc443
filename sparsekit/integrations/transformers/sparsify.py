"""A model with pipelines in it, and how it becomes again what it was."""

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

LINES = 4  # of a printed handle, about one thing
MISSING = object()  # where an object has no such attribute
IMPLEMENTATION = "_attn_implementation_internal"  # of a config: its setter changes the configs of all parts too


@dataclass
class Slot:
    """One attribute that sparsify sets, and what stood there before."""

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
    """Slots as one call of sparsify set them, in the order of such calls."""

    _all: "WeakSet[Change]" = WeakSet()
    _count = 0

    def __init__(self, handle: "Sparsified", slots: list[Slot]) -> None:
        self._handle, self.slots = ref(handle), slots
        Change._count += 1
        self.number = Change._count
        below = [change for change in Change._in_order() if any(change._has(slot) for slot in slots)]
        for change in below:
            if change._handle() is None and change._is_covered():
                change.undo()  # a loop that makes handles and drops them keeps no more than one such change
        self._below = [change for change in below if change in Change._all]  # kept as long as this one is
        for slot in slots:
            slot.before = slot.owner.__dict__.get(slot.name, MISSING)
            slot.put(slot.after)
        Change._all.add(self)

    @classmethod
    def _in_order(cls) -> "list[Change]":
        return sorted(cls._all, key=lambda change: change.number)

    def _has(self, slot: Slot) -> Slot | None:
        """The slot of this change that is the same attribute."""
        return next((mine for mine in self.slots if mine.is_that_of(slot)), None)

    def _heir(self, slot: Slot) -> Slot | None:
        """The same attribute, in the change that was made on top of this one."""
        above = (change._has(slot) for change in Change._in_order() if change.number > self.number)
        return next((found for found in above if found is not None), None)

    def _is_covered(self) -> bool:
        return all(self._heir(slot) is not None for slot in self.slots)

    def undo(self, abandoned: bool = False) -> None:
        """Give each slot back what stood there, or hand that on to the change that was made on top of this one.

        With `abandoned` the changes below are undone too whose handle nobody holds any more.
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
        self.dense = dense  # by layer: why it ran dense in spite of its pipeline, in the calls so far
        self._name, self._layers, self._depth = type(model).__name__, layers, 0
        self._slots, self._told = slots, False
        self._change: Change | None = None
        self._apply()

    def _apply(self) -> None:
        register()
        if self._change is None:
            self._change = Change(self, [Slot(slot.owner, slot.name, slot.after) for slot in self._slots])

    def restore(self) -> None:
        """Make the model what it was before, whatever other handles of it there are, in any order.

        A call of `sparsify` whose handle nobody holds any more is taken back with the one made after it: what a
        notebook's cell did, run again. A second call does nothing.
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
        """By layer that has a pipeline and was called: its calls so far."""
        return next(iter(self._layers.values())).ran

    def _reasons(self) -> dict[int, str]:
        """By layer: why it ran dense, by its pipeline's own choice too."""
        found = {layer: why_dense(ran, self._layers[layer].pipeline) for layer, ran in sorted(self._ran.items())}
        return {layer: reason for layer, reason in found.items() if reason} | self.dense

    def _warn_if_all_was_dense(self) -> None:
        """Warn, once, if there were calls and no layer was sparse in any, unless every reason has been told before."""
        calls, reasons = sum(ran.calls for ran in self._ran.values()), self._reasons()
        if self._told or not calls or any(ran.sparse for ran in self._ran.values()) or not {*reasons} - {*self.dense}:
            return
        self._told = True
        said = "; ".join(dict.fromkeys(reasons.values()))
        warnings.warn(f"sparsekit: {self._name} ran dense in all of its prefills: {said}", stacklevel=4)

    def __repr__(self) -> str:
        some = sum(mine.pipeline is not None for mine in self._layers.values())
        state = "sparse" if self._change else "restored"
        return (
            f"<Sparsified {self._name}, {state}: {some} of {len(self._layers)} layers, {counted(self._ran.values())}>"
        )

    def __str__(self) -> str:
        pipelines = {layer: mine.pipeline for layer, mine in self._layers.items()}
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

    `model` is a decoder model of transformers, or a module around one. `pipeline` is a Pipeline, a recipe's name or a
    spec, for all layers, or a mapping from layers to those: a layer's number, a range "15-30" (both ends in it) or
    "default"; layers not named are dense. `layers` are those of one pipeline, written likewise. Without a pipeline the
    sparsekit.json beside the model names it. `watch` is called with a LayerCall after the prefill attention of every
    layer, in the order they run, where it can be put as Problems. At most 32 new tokens over a cache are decode.

    Copies of the model (copy.deepcopy, pickle, replicas) are sparse like it, until one restores *them* by another
    `attn_implementation`. Parts without such layers, a vision tower, keep their own implementation.
    Raises ValueError for a spec that does not parse, a layer the model lacks or one named twice, and for a model none
    of whose chosen layers can run a pipeline, with the reason.
    """
    found = _Model.of(model)
    if pipeline is None:
        pipeline = load_pipeline(found.root.name_or_path or "")
    chosen = by_layer(pipeline, sorted(found.attention), _just(layers))
    own = found.own_arguments()
    able = [layer for layer, mine in chosen.items() if mine is not None and layer not in own]
    if len(own) == len(chosen) or (not able and any(mine is not None for mine in chosen.values())):
        raise ValueError(
            f"model: got {type(model).__name__}, none of whose chosen layers can run a pipeline: "
            f"{'; '.join(dict.fromkeys(own.values()))}; allowed is a layer that gives any implementation the same "
            "arguments: use the model as it is"
        )
    dense = {layer: reason for layer, reason in own.items() if chosen[layer] is not None}
    group = _heads_group(found.root)
    ran: dict[int, Ran] = {}
    made = {layer: Layer(chosen[layer], watch, group, dense, ran) for layer in sorted(chosen)}
    handle = Sparsified(model, made, found.slots(made, own), dense)
    for layer in [layer for i, layer in enumerate(dense) if dense[layer] not in list(dense.values())[:i]]:
        warn_dense(found.attention[layer][0], dense[layer])
    return handle


@dataclass(frozen=True)
class _Model:
    """The parts of a model that sparsify deals with."""

    root: PreTrainedModel  # the outermost model of transformers
    attention: dict[int, list[nn.Module]]  # by layer, the attention modules that go through the interface
    around: list[PreTrainedModel]  # the models that these modules are in

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
        names = causal or able  # some decoders have the flag of an encoder: then each call's mask tells
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
        """The layers that must keep their own implementation, and why."""
        return {
            layer: f"its {type(module).__name__} prepares other arguments for an implementation of another name"
            for layer, modules in self.attention.items()
            for module in modules
            if decides_by_name(module)
        }

    def slots(self, layers: Mapping[int, Layer], own: Mapping[int, str]) -> list[Slot]:
        """What to set, so that these layers do it. Raises ValueError, the model's own, if a part refuses the name."""
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
    number = getattr(module, "layer_idx", None)
    return number if isinstance(number, int) else None


def _outer(name: str) -> Iterator[str]:
    """ "a.b.c" -> "", "a", "a.b"."""
    parts = name.split(".")
    return (".".join(parts[:i]) for i in range(len(parts)))


def _why(modules: Mapping[str, nn.Module]) -> str:
    """In words, why none of these modules is a layer that can run a pipeline."""
    attention = [module for module in modules.values() if "attention" in type(module).__name__.lower()]
    names = lambda found: ", ".join(list(dict.fromkeys(type(module).__name__ for module in found))[:3])  # noqa: E731
    if apart := [module for module in attention if not goes_through(module) and hasattr(module, "layer_idx")]:
        return f"its {names(apart)} computes attention itself and asks no AttentionInterface"
    if other := [module for module in modules.values() if goes_through(module)]:
        return f"its {names(other)} has no number (layer_idx)"
    if attention:
        return f"its {names(attention)} computes attention itself and asks no AttentionInterface"
    return "it has no attention"


def _just(layers: Any) -> Any:
    """The layers as given. Raises ValueError for what names none."""
    if layers is None or isinstance(layers, int | str):
        return layers
    if not isinstance(layers, Iterable):
        raise ValueError(
            f'layers: got {layers!r}; allowed are a number, a range like "15-30", or a list of those: write it so'
        )
    return list(layers)


def _grouped(of: Mapping[int, Any]) -> list[tuple[Any, list[int]]]:
    """[(what, the layers that have it)], in the order of the layers."""
    order = sorted(of)
    return [(what, [x for x in order if of[x] == what]) for what in dict.fromkeys(of[x] for x in order)]


def _first(said: list[str]) -> list[str]:
    """Lines about layers, no more than LINES of them."""
    more = [f"  and {len(said) - LINES + 1} more"] if len(said) > LINES else []
    return [f"  layers {line}" for line in said[: LINES - len(more)]] + more


def _ranges(layers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _heads_group(model: PreTrainedModel) -> Any:
    """The ranks over which tensor parallelism splits each layer's heads; None if there is one."""
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None or (model.tp_size or 1) == 1:
        return None
    return (mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group()
