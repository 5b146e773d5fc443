"""Sentences in one wording, each with its own key and number; the question asks for the number of one key.

Source: RULER (arXiv:2404.06654), needle in a haystack with several keys.
"""

from random import Random

from ..needles import draw
from ..question import Question

KEYS = 16


def needle_keys(rng: Random) -> Question:
    """Return the question about one of KEYS needles."""
    return draw(rng, keys=KEYS, asked=1)
