"""Rotary positions stretched beyond what a model was made for, when a user asks for it."""

import json
import re
from copy import deepcopy
from typing import Any

KINDS = ("yarn", "linear", "llama3", "longrope")  # not "dynamic": its frequencies change with the length of a prompt
SHORT = re.compile(r"(yarn|linear):(\d+(?:\.\d+)?)")


def scaled(config: Any, asked: str) -> Any:
    """Return a config of transformers with its rotary positions stretched.

    `asked` is "yarn:4", "linear:2" or rope parameters as JSON. Raises ValueError for what does not say how far, or a
    model without rotary positions.
    """
    wanted = _parsed(asked)
    made = deepcopy(config)
    text = made.get_text_config()
    old, limit = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not old or not isinstance(limit, int):
        raise ValueError(
            f"rope-scaling: got {asked!r} for a {config.model_type} model, which has no rotary positions; allowed are "
            "models with them: leave it out"
        )
    keys = [key for key, value in old.items() if isinstance(value, dict)]  # one for each type of layer
    if keys:
        text.rope_parameters = old | {key: _joined(old[key], wanted, limit) for key in keys if "sliding" not in key}
    else:
        text.rope_parameters = _joined(old, wanted, limit)
    text.max_position_embeddings = int(_native(old[keys[0]] if keys else old, limit) * wanted["factor"])
    return made


def _parsed(asked: str) -> dict[str, Any]:
    if short := SHORT.fullmatch(asked):
        found: Any = {"rope_type": short[1], "factor": float(short[2])}
    else:
        try:
            found = json.loads(asked)
        except ValueError:
            found = None
    factor = found.get("factor") if isinstance(found, dict) else None
    if not isinstance(factor, int | float) or not factor > 1 or found.get("rope_type") not in KINDS:
        raise ValueError(
            f'rope-scaling: got {asked!r}; allowed are "yarn:4", "linear:2" or JSON with a "rope_type" of '
            f'{", ".join(KINDS)} and a "factor" above 1: write one of those'
        )
    return found


def _joined(old: dict[str, Any], wanted: dict[str, Any], limit: int) -> dict[str, Any]:
    kept = {name: old[name] for name in ("rope_theta", "partial_rotary_factor") if name in old}
    native = {} if wanted["rope_type"] == "linear" else {"original_max_position_embeddings": _native(old, limit)}
    return kept | native | wanted


def _native(old: dict[str, Any], limit: int) -> int:
    """Return for how many positions a model was made before any stretching."""
    return old.get("original_max_position_embeddings") or limit
