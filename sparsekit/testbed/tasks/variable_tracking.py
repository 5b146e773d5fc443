"""A chain of assignments: a variable takes a value, the next variable takes the first, and so on for 2 or 3 hops.

The question begins with the last variable. The answer follows the chain back, one line per hop, to the digits; only
these are scored. Every hop takes one retrieval. The text has up to three other chains.
"""

from collections.abc import Iterator
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, keys, value

# The texts before and after the source of an assignment (a variable or the digits).
PHRASINGS = (
    ("{key} = ", ""),
    ("# {key} takes the value ", "."),
    ("{key}: int = ", ""),
    ("    let {key} be ", ";"),
    ("export {key}=", ""),
    ("    # {key} <- ", ""),
)


def draw(rng: Random, names: Iterator[str], phrasing: int) -> Fact:
    """Return the fact of a chain of 2 or 3 hops, in the wording PHRASINGS[phrasing % len(PHRASINGS)]."""
    before, after = PHRASINGS[phrasing % len(PHRASINGS)]
    chain = [next(names) for _ in range(rng.randint(3, 4))]
    sources = [value(rng), *chain[:-1]]  # the source of each assignment, in document order
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
