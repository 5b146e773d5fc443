"""A JSON object of random keys and values that fills most of the prompt. The question asks for the value of one key.

Keys are three groups of 5 letters, values three groups of 5 hexadecimal digits; all keys differ. The question begins
the line of one key; its whole value is scored.

Source: InfiniteBench (arXiv:2402.13718), Retrieve.KV. Differs from it: its keys and values are UUIDs of 36 characters;
here they are shorter, so that each length holds more pairs, and keys have no digits, so that no key looks like a value.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys

GROUPS = 3
GROUP = 5
LINE = len('    "": "",\n') + 2 * (GROUPS * (GROUP + 1) - 1)
PART = 7 / 8  # of the prompt; the rest is text around the object


def draw(rng: Random, names: Iterator[str], pairs: int, asked: int = 1) -> list[Fact]:
    """Return `asked` facts about different keys of an object of `pairs` keys; the first holds the object's lines."""
    drawn = [("-".join(next(names) for _ in range(GROUPS)), hexadecimal(rng)) for _ in range(pairs)]
    lines = ",\n".join(f'    "{key}": "{number}"' for key, number in drawn)
    block: list[list[str]] = [[f"{{\n{lines}\n}}"], *[[]] * (asked - 1)]
    questions = [(f'    "{key}": "', number) for key, number in rng.sample(drawn, asked)]
    return [fact(at, start, [(number, True)]) for at, (start, number) in zip(block, questions, strict=True)]


def key_value(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    (asked,) = draw(rng, keys(rng), int(length * PART) // LINE)
    return compose("key_value", text, length, rng, asked)


def hexadecimal(rng: Random) -> str:
    """Return a random value: GROUPS groups of GROUP hexadecimal digits."""
    return "-".join(f"{rng.randrange(16**GROUP):0{GROUP}x}" for _ in range(GROUPS))
