"""The settings of the plugin, as `--additional-config '{"sparsekit": {"pipeline": "balanced"}}'` gives them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from ...checks import check_count
from ...layers import by_layer, numbered, read_pipeline
from ...pipeline import Pipeline

NAME = "sparsekit"  # the key in vLLM's additional_config
ALLOWED = ("pipeline", "break_even", "min_tokens", "chunks")
LEAST = 4096  # new tokens of a request below which its prefill is dense, unless `min_tokens` says otherwise


@dataclass(frozen=True)
class Settings:
    """What an engine runs sparse.

    Args:
        pipelines: by layer, the pipeline; None: dense
        min_tokens: least new tokens of a request in one step that a pipeline attends to, >= 1
        chunks: whether a pipeline also attends to a request of which a part is in the cache
    """

    pipelines: Mapping[int, Pipeline | None]
    min_tokens: int = LEAST
    chunks: bool = True

    def __str__(self) -> str:
        """Return in words which layers run which pipeline."""
        layers: dict[str, list[int]] = {}
        for layer, pipeline in self.pipelines.items():
            layers.setdefault("dense" if pipeline is None else pipeline.to_spec(), []).append(layer)
        each = [f"{numbered(numbers)}: {spec}" for spec, numbers in layers.items()]
        whole = "" if self.chunks else "; prompts in chunks run dense"
        return f"{'; '.join(each)}; for {self.min_tokens:,} new tokens and more{whole}"


def settings(given: Any, layers: int) -> Settings | None:
    """Return the settings in vLLM's `additional_config` for a model of so many layers; None without any.

    `pipeline` is a spec, a recipe's name, a mapping from layers to those, or the path of a sparsekit.json. `break_even`
    is that of `Attend`. Raises ValueError for anything else.
    """
    mine = given.get(NAME) if isinstance(given, Mapping) else None
    return None if mine is None else _settings(json.dumps(mine, sort_keys=True), layers)


@cache  # each layer asks
def _settings(text: str, layers: int) -> Settings:
    given = json.loads(text)
    if not isinstance(given, dict) or "pipeline" not in given:
        raise ValueError(
            f'additional_config: got {{"{NAME}": {text}}}; allowed is an object with a "pipeline": write '
            f'{{"{NAME}": {{"pipeline": "balanced"}}}}'
        )
    for name in given:
        if name not in ALLOWED:
            close = get_close_matches(name, ALLOWED, 1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"additional_config: {NAME} has no {name!r}{meant}; allowed are {', '.join(ALLOWED)}")
    least, chunks = given.get("min_tokens", LEAST), given.get("chunks", True)
    check_count("min_tokens", least, 1)
    if not isinstance(chunks, bool):
        raise ValueError(f"chunks: got {chunks!r}; allowed are true and false: pass one")
    pipeline = given["pipeline"]
    pipelines = by_layer(read_pipeline(pipeline) if isinstance(pipeline, str) else pipeline, list(range(layers)))
    if "break_even" in given:
        limit = given["break_even"]
        pipelines = {i: one and Pipeline([one], break_even=limit) for i, one in pipelines.items()}
    return Settings(pipelines, least, chunks)
