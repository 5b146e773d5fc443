"""Presets, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. `presets.py` has them as text.

What each of them keeps, and how fast it is, stands in one table, docs/front.md, model by model, and what is claimed of
it below that. A model of yours may differ: `sparsekit eval MODEL --pipelines 'lossless;balanced;fast' --lengths 8K`
measures it. On short prompts deciding takes longer than it saves. On GPUs whose times are known (break_even.py) these
run dense by themselves.
"""

from collections.abc import Callable, Iterable

from .pipeline import Pipeline
from .presets import PRESETS
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Token Sparse Attention as published: no fill, tau .005, in `layers`, and dense attention in the others.

    `layers` are those of least drift: `profile_layers(model, prompts).layers`. Source: arXiv:2602.03216, section 2,
    and the defaults of its code.
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """For answers and text as dense attention gives them: meant to lose nothing that can be told.

    It computes nearly all of a prompt of 8K, and about half of 32K: up to 16K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["lossless"])


def balanced() -> Pipeline:
    """For most uses: meant to keep nearly all answers, and to cost the text that follows little.

    On prompts of up to 16K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["balanced"])


def fast() -> Pipeline:
    """For long texts: meant to keep most answers, for less than `balanced` costs.

    On prompts of up to 8K dense attention may be faster.
    """
    return Pipeline.from_spec(PRESETS["fast"])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
