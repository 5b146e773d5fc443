"""Rows of made-up words; the question asks for the most frequent word.

It is a quarter of every row, and no other word occurs twice in a row, so the number of rows does not change the answer.
The frequencies of the others fall along a list, as 1 / rank. The whole document consists of such rows.

Source: RULER (arXiv:2404.06654), frequent words extraction. Differs from it: the answer is one word, with a clear lead.
"""

from collections.abc import Iterator
from random import Random

from ..question import Question
from ..vocabulary import made_up

ROW = 12  # words
FREQUENT = 3  # times in a row
POOL = 100
INTROS = (
    "Below are rows of coded words. One of them is more frequent than all others. I will ask which one.",
    "Read the coded text below and keep track of how often each coded word appears in it.",
)


def frequent_words(rng: Random) -> Question:
    """Return the question about the most frequent word."""
    most, *others = made_up(rng, 1 + POOL, 3)
    return Question(
        asked=rng.choice(
            (
                "Which word is the most frequent in the coded text above?",
                "Which of the coded words above appears most often?",
            )
        )
        + ' Answer in the form: The most frequent word is "WORD".',
        reply=(('The most frequent word is "', False), (most, True), ('".', False)),
        intro=rng.choice(INTROS),
        least=4,
        rows=_rows(Random(rng.random()), most, others),
    )


def _rows(rng: Random, most: str, others: list[str]) -> Iterator[str]:
    """Yield rows in which no other word occurs twice."""
    weights = [1 / rank for rank in range(1, 1 + len(others))]
    while True:
        row: dict[str, None] = {}
        while len(row) < ROW - FREQUENT:
            row |= dict.fromkeys(rng.choices(others, weights))
        yield " ".join(rng.sample([*row, *[most] * FREQUENT], ROW))
