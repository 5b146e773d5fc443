"""Which layer has which pipeline: as an argument, and as the file sparsekit.json beside a model.

{"pipeline": {"15-30": "token_coverage(tau=0.02) | flex_prefill", "default": "dense"}}
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...pipeline import Pipeline

FILE = "sparsekit.json"
Given = Pipeline | str | Mapping[int | str, Pipeline | str]


def by_layer(pipeline: Any, layers: list[int], only: Any = None) -> dict[int, Pipeline | None]:
    """The pipeline of each of a model's layers, None for dense.

    `pipeline` is one for all of them or a mapping from layers to those; `only` restricts one to some layers. Raises
    ValueError for a pipeline that is none, a layer the model lacks or one named twice.
    """
    if only is not None:
        if isinstance(pipeline, Mapping):
            raise ValueError(
                f"layers: got {only!r} beside a mapping; a mapping names its layers itself: leave layers out"
            )
        names = [only] if isinstance(only, int | str) else list(only)
        pipeline = {name: pipeline for name in names} | {"default": "dense"}
    if not isinstance(pipeline, Mapping):
        return dict.fromkeys(layers, parsed(pipeline))
    chosen: dict[int, Pipeline | None] = {}
    for name, one in pipeline.items():
        for layer in () if name == "default" else _numbers(name):
            if layer not in layers:
                raise ValueError(
                    f"pipeline: got layer {layer}, but the model has {layers[0]} to {layers[-1]}: name one of those"
                )
            if layer in chosen:
                raise ValueError(f"pipeline: layer {layer} is named twice, again by {name!r}: keep one of the entries")
            chosen[layer] = parsed(one)
    default = parsed(pipeline.get("default", "dense"))
    return {layer: chosen.get(layer, default) for layer in layers}


def parsed(given: Any) -> Pipeline | None:
    """A pipeline from one, a recipe's name or a spec; None for a dense one. Raises ValueError for another thing."""
    made = Pipeline.from_spec(given) if isinstance(given, str) else given
    if not isinstance(made, Pipeline):
        raise ValueError(
            f"pipeline: got {given!r}; allowed are a Pipeline, a spec, or a mapping of layers to those: pass one"
        )
    return made if made.stages else None


def save_pipeline(folder: Path | str, pipeline: Given) -> Path:
    """Write a pipeline, or a mapping from layers to pipelines, beside a model; `sparsify(model)` finds it there.

    Returns the file's path. Raises ValueError for a folder that is none, a pipeline that is none, or one with a stage
    that has no name in a spec.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"folder: got {str(folder)!r}; allowed is the folder of a saved model: save the model first")
    if isinstance(pipeline, Mapping):
        for name in pipeline:
            _ = name == "default" or _numbers(name)
        text: Any = {str(name): _text(one) for name, one in pipeline.items()}
    else:
        text = _text(pipeline)
    path = Path(folder) / FILE
    unfinished = path.with_name(f".{FILE}")
    unfinished.write_text(json.dumps({"pipeline": text}, indent=1) + "\n")
    return unfinished.replace(path)


def load_pipeline(folder: Path | str) -> Given:
    """What `save_pipeline` wrote: a spec, or a mapping from layers to specs. Raises ValueError if there is none."""
    path = Path(folder) / FILE
    if not str(folder) or not path.is_file():
        raise ValueError(
            f"pipeline: got none, and there is no {FILE} in {str(folder)!r}; allowed are a pipeline, or a model loaded "
            "from a folder with that file: pass a pipeline, or write the file with save_pipeline"
        )
    try:
        found = json.loads(path.read_bytes())["pipeline"]  # of any encoding of JSON, with its mark or without
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: not such a file ({error!r}); allowed is {{"pipeline": a spec, or layers and their specs}}: write '
            "it with save_pipeline"
        ) from None
    return found


def beside(config: Any, layer: int) -> Pipeline | None:
    """The pipeline that a file beside a model's weights gives one of its layers; None for dense, or without a file."""
    folder = getattr(config, "name_or_path", "") or ""
    path = Path(folder) / FILE
    if not folder or not path.is_file():
        return None
    return _read(folder, path.stat().st_mtime_ns, config.num_hidden_layers).get(layer)


@lru_cache(maxsize=64)
def _read(folder: str, written: int, layers: int) -> dict[int, Pipeline | None]:
    return by_layer(load_pipeline(folder), list(range(layers)))


def _numbers(name: int | str) -> Iterable[int]:
    if isinstance(name, int) and not isinstance(name, bool):
        return [name]
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", name) if isinstance(name, str) else None
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError(
            f'pipeline: got {name!r} for a layer; allowed are a number, a range like "15-30" and "default": write it so'
        )
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _text(one: Any) -> str:
    """As it is written to the file."""
    pipeline = parsed(one)
    return one if isinstance(one, str) else pipeline.to_spec() if pipeline else "dense"
