"""A question about needles, after which further text stands before the reply.

A stage that lets the last tokens of a prompt vote does not see the question among them. The further text has 300 or
1,000 tokens, chosen at random, from the same source as the document.
"""

from random import Random

from ..needles import draw
from ..question import Question

KEYS = 8
ASKED = 4
FURTHER = (300, 1000)


def needle_before(rng: Random) -> Question:
    """Return the question about ASKED of KEYS needles, with further text after it."""
    return draw(rng, keys=KEYS, asked=ASKED, further=rng.choice(FURTHER))
