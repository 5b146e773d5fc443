"""Presets, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. All of them keep tokens by votes
that are smoothed over 31 neighbours, so that whole lines are kept and not single tokens, and give dropped queries a
sliding window. The wider the window, the less is lost of the text that follows a prompt, which no answer depends on.

What each of them keeps, and how fast it is, stands in one table, docs/front.md, model by model, and what is claimed of
it below that. A model of yours may differ: `sparsekit eval MODEL --pipelines 'lossless;balanced;fast' --lengths 8K`
measures it. On short prompts deciding takes longer than it saves. On GPUs whose times are known (break_even.py) these
run dense by themselves.
"""

from collections.abc import Callable, Iterable

from .fills import SlidingWindow
from .pipeline import Decompress, Pipeline
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Token Sparse Attention as published: no fill, tau .005, in `layers`, and dense attention in the others.

    `layers` are those of least drift: `profile_layers(model, prompts).layers`. Source: arXiv:2602.03216, section 2,
    and the defaults of its code.
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """For answers and text as dense attention gives them: meant to lose nothing that can be told.

    The last 4096 queries see everything, dropped ones before them the 8192 keys nearest to them and the first tokens.
    Of a prompt of 32K that is most of it: there and below, dense attention is faster, which `break_even` does not know.
    """
    return _smooth(tau=0.2, votes=512, near=8192, dense_last=4096)


def balanced() -> Pipeline:
    """For most uses: meant to keep nearly all answers, and to cost the text that follows little.

    At 32K it is hardly faster than dense attention, below that slower, unless `break_even` runs it dense.
    """
    return _smooth(tau=0.2, votes=512, near=512)


def fast() -> Pipeline:
    """For single questions about a long text: what is asked before the last 128 tokens is missed more often.

    At 32K it is hardly faster than dense attention, below that slower, unless `break_even` runs it dense.
    """
    return _smooth(tau=0.2, votes=128, near=128)


def _smooth(tau: float, votes: int, near: int, dense_last: int = 0) -> Pipeline:
    fill = SlidingWindow(near)
    return Pipeline([TokenCoverage(tau=tau, window=votes, pool=31), Decompress(fill, dense_last)])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
