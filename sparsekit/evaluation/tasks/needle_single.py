"""One sentence with a number, hidden in real text; the question asks for the number.

Source: RULER (arXiv:2404.06654), single needle in a haystack.
"""

from random import Random

from ..needles import draw
from ..question import Question


def needle_single(rng: Random) -> Question:
    """Return the question about the only needle."""
    return draw(rng, keys=1, asked=1)
