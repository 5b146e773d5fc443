"""A line of random words that stands in the text once. The prompt ends with its beginning; the model continues it.

Only the line itself determines the next word, so every word takes a retrieval by the words before it. The words after
the first two are scored, each as one value; the spaces between them are not.

Source: the copying and induction probes of in-context learning (Olsson et al., arXiv:2209.11895). Differs from them:
the span occurs once, and far away.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, words

WORDS = 16
GIVEN = 2

# The texts before and after the words.
PHRASINGS = (
    ("# ", ""),
    ("", ""),
    ("    # ", "."),
    ("# text: ", ""),
)


def draw(rng: Random, spoken: Iterator[str], phrasing: int, n: int = WORDS) -> Fact:
    """Return the fact of a line of `n` words, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    span = list(islice(spoken, n))
    answer = [piece for word in span[GIVEN:] for piece in ((" ", False), (word, True))]
    return fact([before + " ".join(span) + after], before + " ".join(span[:GIVEN]), answer)


def copy_span(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    phrasing = rng.randrange(len(PHRASINGS))
    return compose("copy_span", text, length, rng, draw(rng, words(rng), phrasing))
