"""A text of made-up words that fills most of the prompt. The question asks for the three most frequent, in order.

The frequency of a word falls with the square of its rank (zeta distribution, alpha = 2). The first rank is noise, a row
of dots, which does not count. The answer lists the three, a numbered line each; the words are scored.

Source: RULER (arXiv:2404.06654), frequent words extraction.
"""

from collections.abc import Iterator
from itertools import islice
from math import pi
from random import Random

from ..sample import WORD_LETTERS, Fact, Sample, check_length, compose, fact, words

FREQUENT = 3
NOISE = "." * WORD_LETTERS
ROW = 12  # words in a line
PART = 7 / 8  # of the prompt; the rest is text around the words
QUESTION = f"# The {FREQUENT} most frequent words, dots aside, the most frequent first:\n1."


def draw(rng: Random, spoken: Iterator[str], size: int) -> Fact:
    """Return the fact of a text of about `size` bytes, at least 500, so that the three differ in frequency."""
    n = size // (WORD_LETTERS + 1)
    counts = by_rank(n)
    ranked = [NOISE, *islice(spoken, len(counts) - 1)]
    listed = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    rng.shuffle(listed)
    rows = [" ".join(listed[at : at + ROW]) for at in range(0, n, ROW)]
    first, *rest = ranked[1 : 1 + FREQUENT]
    answer = [(" ", False), (first, True)]
    for i, word in enumerate(rest, 2):
        answer += [(f"\n{i}. ", False), (word, True)]
    return fact(["\n".join(rows)], QUESTION, answer)


def frequent_words(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    return compose("frequent_words", text, length, rng, draw(rng, words(rng), int(length * PART)))


def by_rank(n: int) -> list[int]:
    """Return the count of each rank among n words: zeta(2) rounded down, then ranks that occur once, n in all."""
    counts: list[int] = []
    while (count := int(n * 6 / (pi * (len(counts) + 1)) ** 2)) > 0:
        counts.append(count)
    return counts + [1] * (n - sum(counts))
