"""Stretches a model's rotary positions beyond its own length, for the option --rope-scaling."""

import json
import re
from copy import deepcopy
from typing import Any

KINDS = ("yarn", "linear", "llama3", "longrope")  # not "dynamic": its frequencies change with the length of a prompt
SHORT = re.compile(r"(yarn|linear):(\d+(?:\.\d+)?)")


def scaled(config: Any, asked: str) -> Any:
    """Return a config of transformers with its rotary positions stretched.

    `asked` is "yarn:4", "linear:2" or rope parameters as JSON. Raises ValueError for a text without a kind and a
    factor, and for a model without rotary positions.
    """
    wanted = _parsed(asked)
    stretched = deepcopy(config)
    text = stretched.get_text_config()
    old, limit = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not old or not isinstance(limit, int):
        raise ValueError(
            f"rope-scaling: got {asked!r} for a {config.model_type} model, which has no rotary positions; allowed are "
            "models that have them: leave it out"
        )
    keys = [key for key, value in old.items() if isinstance(value, dict)]  # parameters by type of layer
    if keys:
        text.rope_parameters = old | {key: _joined(old[key], wanted, limit) for key in keys if "sliding" not in key}
    else:
        text.rope_parameters = _joined(old, wanted, limit)
    text.max_position_embeddings = int(_native(old[keys[0]] if keys else old, limit) * wanted["factor"])
    return stretched


def _parsed(asked: str) -> dict[str, Any]:
    if short := SHORT.fullmatch(asked):
        parameters: Any = {"rope_type": short[1], "factor": float(short[2])}
    else:
        try:
            parameters = json.loads(asked)
        except ValueError:
            parameters = None
    factor = parameters.get("factor") if isinstance(parameters, dict) else None
    if not isinstance(factor, int | float) or not factor > 1 or parameters.get("rope_type") not in KINDS:
        raise ValueError(
            f'rope-scaling: got {asked!r}; allowed are "yarn:4", "linear:2" or JSON with a "rope_type" of '
            f'{", ".join(KINDS)} and a "factor" above 1: write one of those'
        )
    return parameters


def _joined(old: dict[str, Any], wanted: dict[str, Any], limit: int) -> dict[str, Any]:
    kept = {name: old[name] for name in ("rope_theta", "partial_rotary_factor") if name in old}
    native = {} if wanted["rope_type"] == "linear" else {"original_max_position_embeddings": _native(old, limit)}
    return kept | native | wanted


def _native(old: dict[str, Any], limit: int) -> int:
    """Return the number of positions that a model has without any stretching."""
    return old.get("original_max_position_embeddings") or limit
