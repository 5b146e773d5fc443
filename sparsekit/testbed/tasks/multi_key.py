"""Many keys with a value each, all in one wording. The question asks for the value of one key.

There is one other key for every 2 KB of prompt, at least 4 and at most 32. Only the key distinguishes the lines.
"""

from random import Random

from ..sample import Sample, check_length, compose, keys
from .single_key import PHRASINGS, draw


def multi_key(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    names, phrasing = keys(rng), rng.randrange(len(PHRASINGS))
    others = [draw(rng, names, phrasing) for _ in range(max(4, min(32, length // 2048)))]
    return compose("multi_key", text, length, rng, draw(rng, names, phrasing), others)
