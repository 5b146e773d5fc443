"""The question about needles comes, then further text, then the reply.

What drops tokens by looking from the last ones of a prompt does not see the question there. The further text has 300
or, every other seed, 1,000 tokens. It is of the same source as the document.
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
