"""Shared by the tasks about needles: sentences "The special number of CITY is 12345", and questions about some."""

from random import Random

from .question import Question, lines, listed
from .vocabulary import CITIES, numbers

INTROS = (
    "Some special numbers are hidden in the text below. Remember them: I will ask about them afterwards.",
    "Read the text below. It mentions special numbers of cities. I will ask you for some of them.",
    "A few sentences about special numbers are hidden in the following text. Remember them for the question after it.",
)
PHRASINGS = (
    "The special number of {city} is {number}.",
    "The special number for {city} is {number}.",
    "The special magic number of {city} is {number}.",
)


def draw(rng: Random, keys: int, asked: int, further: int = 0) -> Question:
    """Return the question about the first `asked` of `keys` needles, each about its own city."""
    phrasing = rng.choice(PHRASINGS)
    lead = phrasing.partition("{number}")[0]
    needles = list(zip(rng.sample(CITIES, keys), numbers(rng, keys), strict=True))
    facts = [phrasing.format(city=city, number=number) for city, number in rng.sample(needles, keys)]
    wanted = needles[:asked]
    cities = listed([city for city, _ in wanted])
    return Question(
        asked=question(lead, cities, asked),
        reply=lines([(lead.format(city=city), number) for city, number in wanted], "."),
        intro=rng.choice(INTROS),
        facts=tuple(facts),
        further=further,
    )


def question(lead: str, cities: str, n: int) -> str:
    """Return the question about the numbers of cities, which also gives the form of the answer."""
    what = lead.removesuffix(" {city} is ").removeprefix("The ")
    form = lead.format(city="CITY") + "NUMBER."
    plural = what.replace("number", "numbers")
    if n == 1:
        return f'What is the {what} {cities} mentioned in the text above? Answer in the form "{form}"'
    return (
        f"What are the {plural} {cities} mentioned in the text above? Answer with one line for each of them, in this "
        f'order, in the form "{form}"'
    )
