"""Presets, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. All of them keep every key block
that a query block looks for at least `alpha` times as hard as for its best one, the first 128 tokens and the nearest
1,024, and give the last 1,024 queries everything: a question is among these, and further text after it. How much that
leaves out is up to the model and the text: the longer a prompt, the more.

What each of them keeps, and how fast it is, stands in one table, docs/front.md, model by model, and what is claimed of
it below that. A model of yours may differ: `sparsekit eval MODEL --pipelines 'lossless;balanced;fast' --lengths 8K`
measures it. On short prompts deciding takes longer than it saves. On GPUs whose times are known (break_even.py) these
run dense by themselves.
"""

from collections.abc import Callable, Iterable

from .pipeline import Decompress, Pipeline
from .stages import BlockThreshold, TokenCoverage

NEAR = 1024  # keys before a query that it sees
LAST = Decompress(dense_last=1024)


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
    return Pipeline([_blocks(0.003), LAST])


def balanced() -> Pipeline:
    """For most uses: meant to keep nearly all answers, and to cost the text that follows little.

    On prompts of up to 16K dense attention may be faster.
    """
    return Pipeline([_blocks(0.01), LAST])


def fast() -> Pipeline:
    """For long texts: meant to keep most answers, for less than `balanced` costs.

    On prompts of up to 8K dense attention may be faster.
    """
    return Pipeline([_blocks(0.03), LAST])


def _blocks(alpha: float) -> BlockThreshold:
    return BlockThreshold(alpha=alpha, sinks=128, window=NEAR, queries="mean")


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
