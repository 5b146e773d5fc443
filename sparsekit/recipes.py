"""Recipes: pipelines with a name, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. `presets.py` has them as text.

docs/front.md has a table, for each model, of what each recipe keeps and how fast it is, and below it what is claimed.
Your model may differ: `sparsekit eval MODEL --pipelines 'lossless;balanced;fast' --lengths 8K` measures it. On short
prompts the stages take longer than they save. Where their times are known (break_even.py) such prompts run dense.
"""

from collections.abc import Callable, Iterable

from .pipeline import Pipeline
from .presets import PRESETS
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Return Token Sparse Attention as published: no fill, tau .005, in `layers`, and dense attention in the others.

    `layers` are those of least drift: `profile_layers(model, prompts).layers`. Source: arXiv:2602.03216, section 2, and
    the defaults of its code.
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """Return the recipe for the same answers and text as dense attention: it aims at no measurable loss.

    It computes nearly all pairs of a prompt of 8K, and about half of 32K: up to 16K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["lossless"])


def balanced() -> Pipeline:
    """Return the recipe for most uses: it aims to keep nearly all answers and to change the text that follows little.

    On prompts of up to 16K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["balanced"])


def fast() -> Pipeline:
    """Return the recipe for long texts: it aims to keep most answers and costs less than `balanced`.

    On prompts of up to 8K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["fast"])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
