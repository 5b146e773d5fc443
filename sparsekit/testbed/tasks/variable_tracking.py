"""A chain of assignments: a variable takes a value, another takes the first, and so on for 2 or 3 hops.

The question begins with the last variable; the answer walks the chain back, one line a hop, down to the digits,
which alone are scored. Every hop is one retrieval. Up to three other chains are in the text.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys, value

# What stands before the source of an assignment (a variable or the digits), and after it.
PHRASINGS = (
    ("{key} = ", ""),
    ("# {key} takes the value ", "."),
    ("{key}: int = ", ""),
    ("    let {key} be ", ";"),
    ("export {key}=", ""),
    ("    # {key} <- ", ""),
)


def draw(rng: Random, names: Iterator[str], phrasing: int) -> Fact:
    """A chain of 2 or 3 hops, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    chain = [next(names) for _ in range(rng.randint(3, 4))]
    sources = [value(rng), *chain[:-1]]  # what each variable takes, in document order
    starts = [before.format(key=key) for key in chain]
    answer = [(sources[-1], False)]
    for start, source in zip(reversed(starts[:-1]), reversed(sources[:-1]), strict=True):
        answer += [(f"{after}\n{start}", False), (source, source is sources[0])]
    return fact([s + source + after for s, source in zip(starts, sources, strict=True)], starts[-1], answer)


def variable_tracking(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    names, phrasing = keys(rng), rng.randrange(len(PHRASINGS))
    others = [draw(rng, names, phrasing) for _ in range(min(3, length // 1024))]
    return compose("variable_tracking", text, length, rng, draw(rng, names, phrasing), others)
