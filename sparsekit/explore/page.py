"""Writes an exploration as one HTML file that needs no network and no other file."""

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
STEPS = 65535  # the part of the queries that read a token, in [0, 1], is written as a whole number from 0 to STEPS


def write_page(
    found: Exploration,
    path: Path | str,
    pieces: Sequence[str],
    *,
    model: str = "",
    made: Mapping[str, str] | None = None,
) -> Path:
    """Write an exploration to `path`, whole or not at all. Return `path`.

    `pieces` holds the text of each token of the prompt, as the function `pieces` returns it. `model` is the model's
    name. `made` maps names to texts that say how the page was made, such as the command and versions. Raises ValueError
    unless there are as many pieces as tokens.
    """
    if len(pieces) != found.grid.tokens:
        raise ValueError(
            f"pieces: got {len(pieces)} for a prompt of {found.grid.tokens} tokens; allowed is one for each: pass the "
            "result of sparsekit.explore.pieces for the same tokens"
        )
    return write_whole(Path(path), page(data(found, pieces, model, made or {}), model))


def page(found: Mapping[str, Any], title: str) -> str:
    """Return the HTML of a page with its data and title, escaped so that neither can end its element."""
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":  # in JSON they occur only in strings
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    parts = {"TITLE": html.escape(title), "DATA": text}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(
        "__(TITLE|DATA)__", lambda match: parts[match[1]], template
    )  # in one pass: the data may contain __TITLE__


def data(found: Exploration, pieces: Sequence[str], model: str, made: Mapping[str, str]) -> dict[str, Any]:
    """Return the data of the page as JSON values; a number that is not finite becomes None."""
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
                "heads": {name: [getattr(head, name) for head in run.heads] for name in FIGURES},
            }
            for run in layer.runs
        ],
        # the attention of each head; then for each pipeline two pictures of each head
        "pictures": base64.b64encode(zlib.compress(packed.numpy().tobytes(), 9)).decode(),
    }


def _words(x: Tensor) -> str:
    """Return whole numbers below 65536 as base64, two bytes each, little endian."""
    return base64.b64encode(x.to(torch.int32).numpy().astype("<u2").tobytes()).decode()


def _finite(x: Any) -> Any:
    """Return the data with None in place of each number that JSON cannot hold."""
    if isinstance(x, dict):
        return {name: _finite(value) for name, value in x.items()}
    if isinstance(x, list):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
