"""Presets with a measured price: pipelines for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. What each is worth is measured
on the embedded model, whose tasks have one right answer, on prompts whose seeds no parameter was chosen by: see
docs/front.md for the tables these figures are from. A model of yours may differ: `sparsekit eval` measures it.
"""

from collections.abc import Callable, Iterable

from .fills import SlidingWindow
from .pipeline import Decompress, Pipeline
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Token Sparse Attention as published: no fill, tau .005, in the layers of least drift, dense in the others.

    `layers` are those to sparsify: `profile_layers(model, prompts).layers`, the half that changes its input least.
    Source: arXiv:2602.03216, section 2 and its code's defaults.
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """No loss that was measured."""
    return Pipeline([TokenCoverage(tau=0.05, window=2048, pool=31), Decompress(SlidingWindow(512))])


def balanced() -> Pipeline:
    """At least 99% of what dense attention answers right, 97% on the worst task."""
    return Pipeline([TokenCoverage(tau=0.1, window=512, pool=31), Decompress(SlidingWindow(128))])


def fast() -> Pipeline:
    """The fastest that still answers single questions about a long text."""
    return Pipeline([TokenCoverage(tau=0.4, window=512, pool=31), Decompress(SlidingWindow(128))])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
