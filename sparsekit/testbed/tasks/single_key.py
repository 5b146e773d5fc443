"""One fact in the whole text: a key with a value. The question asks for the value.

The wording also serves multi_key, where many facts of the same wording compete.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys, value

# The texts before and after the value.
PHRASINGS = (
    ("# The magic number for {key} is ", "."),
    ("{key} = ", ""),
    ('    "{key}": ', ","),
    ('    """The access code of {key} is ', '."""'),
    ("{key}_id: int = ", ""),
    ("# see also {key}, issue ", ""),
    ("assert {key} == ", ""),
    ('register("{key}", ', ")"),
    ("    # {key} -> ", ""),
    ("    return {key} or ", ""),
)


def draw(rng: Random, names: Iterator[str], phrasing: int) -> Fact:
    """Return the fact of a key with a value, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    before = before.format(key=next(names))
    digits = value(rng)
    return fact([before + digits + after], before, [(digits, True)])


def single_key(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    asked = draw(rng, keys(rng), rng.randrange(len(PHRASINGS)))
    return compose("single_key", text, length, rng, asked)
