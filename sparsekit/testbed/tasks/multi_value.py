"""Several numbered values of a key, on lines far apart. The answer lists them all, in order.

The answer repeats each line's wording up to the next value, so that every value takes one retrieval by key and number.
Up to three other keys have several values, too.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys, value

PHRASINGS = (
    ("{key}[{i}] = ", ""),
    ("# Entry {i} of {key} is ", "."),
    ('    "{key}.{i}": ', ","),
    ("{key}.put({i}, ", ")"),
    ("# {key} no. {i}: ", ""),
)


def draw(rng: Random, names: Iterator[str], phrasing: int) -> Fact:
    """Return the fact of two to four values of one key, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    key = next(names)
    starts = [before.format(key=key, i=i) for i in range(rng.randint(2, 4))]
    digits = [value(rng) for _ in starts]
    answer = [(digits[0], True)]
    for start, number in zip(starts[1:], digits[1:], strict=True):
        answer += [(f"{after}\n{start}", False), (number, True)]
    return fact([s + d + after for s, d in zip(starts, digits, strict=True)], starts[0], answer)


def multi_value(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    names, phrasing = keys(rng), rng.randrange(len(PHRASINGS))
    others = [draw(rng, names, phrasing) for _ in range(min(3, length // 1024))]
    return compose("multi_value", text, length, rng, draw(rng, names, phrasing), others)
