"""Several keys with a value each, all in one wording. The question asks for the values of four keys at once.

The question names the four keys, then begins the line of the first. The answer continues with its value and repeats
the line of each further key in the order of the question, which is not the order in the text. The values are scored;
each takes its own retrieval. As many other keys in the same wording compete as in multi_key. The embedded model finds
each value once its line has begun, but does not take the next key from the list, so its whole answers are wrong.

Source: RULER (arXiv:2404.06654), needle in a haystack with several queries.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys, value
from .single_key import PHRASINGS
from .single_key import draw as draw_one

QUERIES = 4


def draw(rng: Random, names: Iterator[str], phrasing: int) -> Fact:
    """Return the fact of QUERIES keys with a value each, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    named = [next(names) for _ in range(QUERIES)]
    starts = [before.format(key=key) for key in named]
    digits = [value(rng) for _ in named]
    lines = [start + number + after for start, number in zip(starts, digits, strict=True)]
    answer = [(digits[0], True)]
    for start, number in zip(starts[1:], digits[1:], strict=True):
        answer += [(f"{after}\n{start}", False), (number, True)]
    return fact(rng.sample(lines, len(lines)), f"# {', '.join(named)}\n{starts[0]}", answer)


def multi_query(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    names, phrasing = keys(rng), rng.randrange(len(PHRASINGS))
    others = [draw_one(rng, names, phrasing) for _ in range(max(4, min(32, length // 2048)))]
    return compose("multi_query", text, length, rng, draw(rng, names, phrasing), others)
