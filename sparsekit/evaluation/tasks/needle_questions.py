"""Sentences in one wording, each with its own key and number; the question asks for the numbers of four keys.

The reply has a line for each key in the order of the question, not that of the text. Each number is a value.

Source: RULER (arXiv:2404.06654), needle in a haystack with several queries.
"""

from random import Random

from ..needles import draw
from ..question import Question

KEYS = 8
ASKED = 4


def needle_questions(rng: Random) -> Question:
    """Return the question about ASKED of KEYS needles."""
    return draw(rng, keys=KEYS, asked=ASKED)
