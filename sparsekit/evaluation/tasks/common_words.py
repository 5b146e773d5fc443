"""Lines that name a person and a word; the question asks which word some people have most often.

Five of six lines about a person have the same word, the sixth another one, so the number of lines does not change the
answers. Each word is a value. The whole document consists of such lines.

Source: RULER (arXiv:2404.06654), common words extraction. Differs from it: one word for each of several people, so that
a prompt has several answers in a given order.
"""

from collections.abc import Iterator
from itertools import count
from random import Random

from ..question import Question, lines, listed
from ..vocabulary import PEOPLE, WORDS

BUYERS = 6
ASKED = 3
SAME = 6  # every sixth line about a person has another word
PHRASINGS = ("{person} bought: {word}", "Order of {person}: {word}", "{person} chose {word}")
INTROS = (
    "Below is a list of what some people chose. I will ask what some of them chose most often.",
    "Read the lines below. Each of them names a person and words. I will ask which word some people have most often.",
)


def common_words(rng: Random) -> Question:
    """Return the question about the most common words of ASKED people."""
    phrasing = rng.choice(PHRASINGS)
    lead = phrasing.partition("{word}")[0]
    people = rng.sample(PEOPLE, BUYERS)
    favourites = dict(zip(people, rng.sample(WORDS, BUYERS), strict=True))
    wanted = [(person, favourites[person]) for person in people[:ASKED]]
    return Question(
        asked=f"Which word stands most often beside {listed(people[:ASKED])}? Answer with one line for each of them, "
        f'in this order, in the form "{phrasing.format(person="PERSON", word="WORD")}"',
        reply=lines([(lead.format(person=person), word) for person, word in wanted]),
        intro=rng.choice(INTROS),
        least=2 * SAME * BUYERS,
        rows=_rows(Random(rng.random()), phrasing, favourites),
    )


def _rows(rng: Random, phrasing: str, favourites: dict[str, str]) -> Iterator[str]:
    """Yield lines; in each round every person has one line, in random order."""
    others = [word for word in WORDS if word not in favourites.values()]
    for turn in count(1):
        for person in rng.sample(list(favourites), len(favourites)):
            word = favourites[person] if turn % SAME else rng.choice(others)
            yield phrasing.format(person=person, word=word)
