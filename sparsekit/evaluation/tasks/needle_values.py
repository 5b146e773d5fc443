"""Sentences that give one key a number for each of four days, and other keys one number without a day.

The question asks for all numbers of the key. Each number is a value. Without days the numbers would have no right
order, so no reply could be called the right one.

Source: RULER (arXiv:2404.06654), needle in a haystack with several values. Differs from it: the days.
"""

from random import Random

from ..needles import INTROS
from ..question import Question, lines, listed
from ..vocabulary import CITIES, numbers

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday")
OTHERS = 4  # cities with a number each
PHRASINGS = (
    ("The special number of {city} on {day} is {number}.", "The special number of {city} is {number}."),
    ("On {day}, the special number of {city} is {number}.", "The special number of {city} is {number}."),
    ("The {day} number of {city} is {number}.", "The number of {city} is {number}."),
)


def needle_values(rng: Random) -> Question:
    """Return the question about the numbers of a city on each of DAYS."""
    phrasing, other = rng.choice(PHRASINGS)
    lead = phrasing.partition("{number}")[0]
    city, *others = rng.sample(CITIES, 1 + OTHERS)
    told = numbers(rng, len(DAYS) + OTHERS)
    wanted = list(zip(DAYS, told, strict=False))
    facts = [phrasing.format(city=city, day=day, number=number) for day, number in wanted]
    facts += [other.format(city=name, number=number) for name, number in zip(others, told[len(DAYS) :], strict=True)]
    return Question(
        asked=f"What are the special numbers of {city} on {listed(DAYS)}? Answer with one line for each of them, in "
        f'this order, in the form "{lead.format(city=city, day="DAY")}NUMBER."',
        reply=lines([(lead.format(city=city, day=day), number) for day, number in wanted], "."),
        intro=rng.choice(INTROS),
        facts=tuple(rng.sample(facts, len(facts))),
    )
