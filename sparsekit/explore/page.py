"""An exploration as one HTML file that needs nothing else: no network, and no other file."""

import base64
import html
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_whole
from ..sinks import SINKS
from .collect import Exploration, Layer
from .pictures import DECADES, ROWS, UNSEEN, WHOLE

FIGURES = ("kept", "density", "mass", "error")
STEPS = 65535  # of the part of the queries that read a token


def write_page(
    found: Exploration,
    path: Path | str,
    pieces: Sequence[str],
    *,
    model: str = "",
    made: Mapping[str, str] | None = None,
) -> Path:
    """Write what was found to `path`, whole or not at all. Return `path`.

    `pieces` are the text of each token of the prompt, of `pieces`. `model` is its name, and `made` says by name how the
    page came to be: a command, versions. Raises ValueError unless there are as many pieces as tokens.
    """
    if len(pieces) != found.grid.tokens:
        raise ValueError(
            f"pieces: got {len(pieces)} for a prompt of {found.grid.tokens} tokens; allowed is one for each: pass what "
            "sparsekit.explore.pieces says of the same tokens"
        )
    return write_whole(Path(path), page(data(found, pieces, model, made or {}), model))


def page(found: Mapping[str, Any], title: str) -> str:
    """Return the HTML around the data of a page. No text in them can end the element that it stands in."""
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":  # they stand in strings alone
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    parts = {"TITLE": html.escape(title), "DATA": text}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub("__(TITLE|DATA)__", lambda match: parts[match[1]], template)  # one pass: the data may hold a name


def data(found: Exploration, pieces: Sequence[str], model: str, made: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows, as JSON holds it; a number that is not finite is null."""
    which = range(len(found.pipelines))
    whole = {
        "model": model,
        "made": dict(made),
        "tokens": found.grid.tokens,
        "cell": found.grid.cell,
        "cells": found.grid.cells,
        "rows": min(ROWS, found.grid.cell),
        "levels": {"whole": WHOLE, "unseen": UNSEEN, "decades": DECADES},
        "sinks": SINKS,
        "heads": found.heads,
        "dense_ms": sum(layer.dense_ms for layer in found.layers),
        "pipelines": [
            {"name": name, "totals": found.totals(i), "warning": found.warning(i)}
            for i, name in enumerate(found.pipelines)
        ],
        "unseen": list(found.unseen),
        "layers": [_layer(layer) for layer in found.layers],
        "pieces": list(pieces),
        "kept": [_words(found.kept(i)) for i in which],
        "steps": STEPS,
        "read": [_words((found.read(i) * STEPS).round()) for i in which],
    }
    return _finite(whole)


def _layer(layer: Layer) -> dict[str, Any]:
    packed = torch.cat([layer.attention.flatten(), *(run.computed.flatten() for run in layer.runs)])
    return {
        "number": layer.number,
        "window": layer.window,
        "heads": len(layer.attention),
        "dense_ms": layer.dense_ms,
        "sinks": layer.sinks and list(layer.sinks),
        "runs": [
            {
                "spec": run.spec,
                "ms": run.ms,
                "whole": asdict(run.whole),
                "heads": {name: [getattr(one, name) for one in run.heads] for name in FIGURES},
            }
            for run in layer.runs
        ],
        # of each head the attention; then of each pipeline and each head two pictures
        "pictures": base64.b64encode(zlib.compress(packed.numpy().tobytes(), 9)).decode(),
    }


def _words(x: Tensor) -> str:
    """Return whole numbers below 65536 as base64 of two bytes each, the low one first."""
    return base64.b64encode(x.to(torch.int32).numpy().astype("<u2").tobytes()).decode()


def _finite(x: Any) -> Any:
    """Return the same with None for each number that JSON cannot hold."""
    if isinstance(x, dict):
        return {name: _finite(one) for name, one in x.items()}
    if isinstance(x, list):
        return [_finite(one) for one in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
