"""Presets with a measured price, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. All of them keep tokens by votes
that are smoothed over 31 neighbours, so that whole lines are kept and not single tokens, and give dropped queries a
sliding window: of what was tried (docs/front.md) nothing else kept so many answers at so little work.

Prices are of the embedded model at 128K bytes on an NVIDIA H200, against the fastest dense attention of the same run:
the answers are of its tasks, and a model of yours may differ: `sparsekit eval MODEL --pipelines 'lossless;balanced'`
measures it. What no answer depends on gets worse sooner: the loss on plain text is in docs/front.md too.
"""

from collections.abc import Callable, Iterable

from .fills import SlidingWindow
from .pipeline import Decompress, Pipeline
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Token Sparse Attention as published: no fill, tau .005, in `layers`, and dense attention in the others.

    `layers` are those of least drift: `profile_layers(model, prompts).layers`. Source: arXiv:2602.03216, section 2,
    and the defaults of its code.

    Price: 48.5% [31.9, 65.5] of the answers (dense 99.2% [87.2, 100.0], n = 30 prompts), worst task single_key
    40.0% (dense 100.0%); attention 224.4 ms over all layers, 1.1 x faster than dense (dense, sparsekit, 253.3 ms).
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """No loss of answers was measured on the tasks that dense attention can do.

    Price: 100.0% [88.6, 100.0] of the answers (dense 99.2% [87.2, 100.0], n = 30 prompts), worst task single_key
    100.0% (dense 100.0%); attention 53.8 ms over all layers, 4.7 x faster than dense (dense, sparsekit, 253.3 ms).
    """
    return _smooth(tau=0.05, window=512)


def balanced() -> Pipeline:
    """At least 99% of the answers of dense attention, 97% on the worst task.

    Price: 99.2% [87.2, 100.0] of the answers (dense 99.2% [87.2, 100.0], n = 30 prompts), worst task multi_query
    95.0% (dense 95.0%); attention 22.3 ms over all layers, 11.4 x faster than dense (dense, sparsekit, 253.3 ms).
    """
    return _smooth(tau=0.2, window=512)


def fast() -> Pipeline:
    """For single questions about a long text: what is asked before the last 128 tokens is missed more often.

    Price: 94.0% [79.5, 98.4] of the answers (dense 99.2% [87.2, 100.0], n = 30 prompts), worst task conversation
    68.8% (dense 100.0%); attention 18.4 ms over all layers, 13.8 x faster than dense (dense, sparsekit, 253.3 ms).
    """
    return _smooth(tau=0.4, window=128)


def _smooth(tau: float, window: int) -> Pipeline:
    return Pipeline([TokenCoverage(tau=tau, window=window, pool=31), Decompress(SlidingWindow(128))])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
