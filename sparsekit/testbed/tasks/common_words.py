"""A numbered list of words that fills most of the prompt. The question asks for the ten that occur most often.

Each of the ten occurs 30 times and every other word 3 times, in random order; a short prompt has fewer of both. The
answer lists the ten in alphabetical order, a numbered line each, so that there is one right answer; the words are
scored.

Source: RULER (arXiv:2404.06654), common words extraction. Differs from it: the question sets the order, and the words
are made up.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from ..sample import WORD_LETTERS, Fact, Sample, check_length, compose, fact, words

COMMON = 10
OFTEN = 30
ROW = 8  # words in a line
PART = 7 / 8  # of the prompt; the rest is text around the list
QUESTION = f"# The {COMMON} most common words of the list, in alphabetical order:\n1."


def draw(rng: Random, spoken: Iterator[str], size: int) -> Fact:
    """Return the fact of a list of about `size` bytes, at least 500, so that each of the ten occurs twice."""
    n = size // (len(f"{size}. ") + WORD_LETTERS + 1)
    often = min(OFTEN, n // (2 * COMMON))
    seldom = max(1, often // 10)
    common = list(islice(spoken, COMMON))
    listed = common * often + list(islice(spoken, (n - COMMON * often) // seldom)) * seldom
    rng.shuffle(listed)
    items = [f"{i}. {word}" for i, word in enumerate(listed, 1)]
    rows = [" ".join(items[at : at + ROW]) for at in range(0, len(items), ROW)]
    first, *rest = sorted(common)
    answer = [(" ", False), (first, True)]
    for i, word in enumerate(rest, 2):
        answer += [(f"\n{i}. ", False), (word, True)]
    return fact(["\n".join(rows)], QUESTION, answer)


def common_words(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    return compose("common_words", text, length, rng, draw(rng, words(rng), int(length * PART)))
