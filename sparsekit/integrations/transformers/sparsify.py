"""A model with pipelines in it, and how it becomes again what it was."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .attention import LAYERS, Layer, Watch, attention, index
from .masks import mask
from .schedule import Given, by_layer, load_pipeline

NAME = "sparsekit"


def register() -> None:
    """Make `attn_implementation="sparsekit"` known to transformers; `sparsify` calls it.

    A model that has it by name alone is dense, unless it was loaded from a folder with a sparsekit.json. The language
    model inside one of several parts is dense even then: its config does not know the folder, and `sparsify` does.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


class Sparsified:
    """A model with pipelines in it: a context manager, and a handle with `restore()`."""

    def __init__(self, model: PreTrainedModel, layers: Mapping[nn.Module, Layer], dense: Mapping[int, str]) -> None:
        self.dense = dense  # by layer: why it ran dense in spite of its pipeline, in the calls so far
        self._model = model
        self._before = {module: LAYERS.get(module) for module in layers}
        self._implementation: dict[str, str] | None = _implementations(model)
        register()
        LAYERS.update(layers)
        model.set_attn_implementation(NAME)

    def restore(self) -> None:
        """The model as it was, its attention implementation included. A second call does nothing."""
        if self._implementation is None:
            return
        self._model.set_attn_implementation(self._implementation)
        for module, layer in self._before.items():
            if layer is None:
                LAYERS.pop(module, None)
            else:
                LAYERS[module] = layer
        self._implementation = None

    def __enter__(self) -> "Sparsified":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def sparsify(
    model: PreTrainedModel,
    pipeline: Given | None = None,
    *,
    layers: int | str | Iterable[int | str] | None = None,
    watch: Watch | None = None,
) -> Sparsified:
    """Let a pipeline compute the prefill attention of a model; decode stays dense.

    `pipeline` is a Pipeline, a recipe's name or a spec, for all layers, or a mapping from layers to those: a layer's
    number, a range "15-30" (both ends in it) or "default"; layers not named are dense. `layers` are those of one
    pipeline, written likewise. Without a pipeline the sparsekit.json beside the model names it. `watch` is called with
    a LayerCall after the prefill attention of every layer, in the order they run, where it can be put as Problems.
    Raises ValueError for a spec that does not parse, a layer the model lacks or one named twice.
    """
    modules = _attention_modules(model)
    if pipeline is None:
        pipeline = load_pipeline(model.name_or_path or "")
    chosen = by_layer(pipeline, sorted({layer for layer, _ in modules}), layers)
    dense: dict[int, str] = {}
    shared: dict[str, Any] = dict(watch=watch, eager=not model._supports_sdpa, heads_group=_heads_group(model))
    made = {module: Layer(chosen.get(layer), dense=dense, **shared) for layer, module in modules}
    return Sparsified(model, made, dense)


def _attention_modules(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    found = [(index(m), m) for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    if not found:
        raise ValueError(
            f"model: got {type(model).__name__}, in which no module has a layer_idx; allowed are decoder models of "
            "transformers: pass one"
        )
    return found


def _heads_group(model: PreTrainedModel) -> Any:
    """The ranks over which tensor parallelism splits each layer's heads; None if there is one."""
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None or (model.tp_size or 1) == 1:
        return None
    return (mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group()


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    def named() -> Iterator[tuple[str, str]]:
        yield "", model.config._attn_implementation
        for name in model.config.sub_configs:
            if (part := getattr(model.config, name, None)) is not None:
                yield name, part._attn_implementation

    return dict(named())
