"""Presets with a measured price, for those who do not want to choose parameters.

A spec may name them: `Pipeline.from_spec("balanced")`, `sparsify(model, "balanced")`. All of them keep tokens by votes
that are smoothed over 31 neighbours, so that whole lines are kept and not single tokens, and give dropped queries a
sliding window: of what was tried (docs/front.md) nothing else kept so many answers at so little work. The wider the
window, the less is lost of the text that follows a prompt, which no answer depends on.

Prices are of the embedded model at 128K bytes, times on an NVIDIA H200 against the fastest dense attention of the same
run. The answers are of its tasks, and a model of yours may differ:
`sparsekit eval MODEL --pipelines 'lossless;balanced'` measures it. The loss of the text that follows a prompt stands
beside the answers, more of it in docs/front.md.
"""

from collections.abc import Callable, Iterable

from .fills import SlidingWindow
from .pipeline import Decompress, Pipeline
from .stages import TokenCoverage


def paper(layers: Iterable[int]) -> dict[int | str, Pipeline | str]:
    """Token Sparse Attention as published: no fill, tau .005, in `layers`, and dense attention in the others.

    `layers` are those of least drift: `profile_layers(model, prompts).layers`. Source: arXiv:2602.03216, section 2,
    and the defaults of its code.

    Price: 66.9% [58.8, 74.0] of the answers (dense 100.0% [97.4, 100.0], n = 144 prompts), worst task multi_value
    59.4% (dense 100.0%); text that follows +0.0216 [+0.0090, +0.0371] bits per byte; attention 200.5 ms over all
    layers, 1.3 x faster than dense (dense, sparsekit, 252.6 ms). Other seeds, another text: 61.8% [53.6, 69.3],
    worst task multi_key 50.0%.
    """
    return {layer: Pipeline([TokenCoverage(tau=0.005)]) for layer in layers} | {"default": "dense"}


def lossless() -> Pipeline:
    """No loss can be told on any task that dense attention can do, nor of the text that follows, 32K to 128K bytes.

    The last 4096 queries see everything, dropped ones before them the 8192 keys nearest to them and the first tokens.

    Price: 100.0% [97.4, 100.0] of the answers (dense 100.0% [97.4, 100.0], n = 144 prompts), worst task single_key
    100.0% (dense 100.0%); text that follows ~ -0.0013 [-0.0042, +0.0006] bits per byte; attention 71.0 ms over all
    layers, 3.6 x faster than dense (dense, sparsekit, 252.6 ms). Other seeds, another text: 100.0% [97.4, 100.0],
    worst task single_key 100.0%.
    """
    return _smooth(tau=0.2, votes=512, near=8192, dense_last=4096)


def balanced() -> Pipeline:
    """Meant to keep at least 99% of the answers of dense attention, 97% on the worst task.

    Price: 99.9% [97.2, 100.0] of the answers (dense 100.0% [97.4, 100.0], n = 144 prompts), worst task conversation
    98.8% (dense 100.0%); text that follows +0.0032 [+0.0005, +0.0067] bits per byte; attention 20.1 ms over all
    layers, 12.6 x faster than dense (dense, sparsekit, 252.6 ms). Other seeds, another text: 99.1% [95.8, 99.8],
    worst task key_value 93.8%.
    """
    return _smooth(tau=0.2, votes=512, near=512)


def fast() -> Pipeline:
    """For single questions about a long text: what is asked before the last 128 tokens is missed more often.

    Price: 98.2% [94.4, 99.4] of the answers (dense 100.0% [97.4, 100.0], n = 144 prompts), worst task conversation
    91.4% (dense 100.0%); text that follows +0.0107 [+0.0042, +0.0193] bits per byte; attention 14.1 ms over all
    layers, 17.9 x faster than dense (dense, sparsekit, 252.6 ms). Other seeds, another text: 98.4% [94.7, 99.5],
    worst task conversation 91.4%.
    """
    return _smooth(tau=0.2, votes=128, near=128)


def _smooth(tau: float, votes: int, near: int, dense_last: int = 0) -> Pipeline:
    fill = SlidingWindow(near)
    return Pipeline([TokenCoverage(tau=tau, window=votes, pool=31), Decompress(fill, dense_last)])


PIPELINES: dict[str, Callable[[], Pipeline]] = {"lossless": lossless, "balanced": balanced, "fast": fast}
