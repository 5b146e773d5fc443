"""Passages of a few lines, each under a marker; the question asks to repeat the lines under one marker.

Each line of a few words is a value.
"""

from random import Random

from ..question import Question, lines
from ..vocabulary import WORDS

PASSAGES = 6
LINES = 4
LINE = 4  # words
MARKERS = ("=== Passage {number} ===", "[[ note {number} ]]", "# --- block {number} ---")
INTROS = (
    "The text below has short passages of words in it, each under a marker. I will ask you to repeat one of them.",
    "Read the text below. Somewhere in it are marked passages of words, and I will ask for one of them word for word.",
)


def copy_span(rng: Random) -> Question:
    """Return the request to repeat the LINES lines under a marker."""
    marker = rng.choice(MARKERS)
    spans = [[" ".join(rng.sample(WORDS, LINE)) for _ in range(LINES)] for _ in range(PASSAGES)]
    markers = [marker.format(number=number) for number in rng.sample(range(100, 1000), PASSAGES)]
    facts = ["\n".join([mark, *span]) for mark, span in zip(markers, spans, strict=True)]
    wanted = rng.randrange(PASSAGES)
    return Question(
        asked=f'Repeat the {LINES} lines that stand under "{markers[wanted]}" in the text above, word for word, '
        "after that marker.",
        reply=((f"{markers[wanted]}\n", False), *lines([("", line) for line in spans[wanted]])),
        intro=rng.choice(INTROS),
        facts=tuple(facts),
    )
