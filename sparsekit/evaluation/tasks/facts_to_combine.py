"""Facts that say where people work and in which city those places are; the question asks for some people's cities.

Each answer takes two facts, which stand apart in the text in random order. Each city is a value. Every person, place
of work and city belongs to one answer, and no model can know who works where.
"""

from random import Random

from ..question import Question, lines, listed
from ..vocabulary import CITIES, PEOPLE, WORKPLACES

PEOPLE_TOLD = 6
ASKED = 3
PHRASINGS = (
    ("{person} works at the {place}.", "The {place} is in {city}."),
    ("{person} has a job at the {place}.", "The {place} stands in {city}."),
    ("{person} is employed by the {place}.", "You find the {place} in {city}."),
)
INTROS = (
    "The text below says of some people where they work, and where these places are. I will ask about it afterwards.",
    "Facts about people and the places where they work are hidden in the following text. Remember them for a question.",
)


def facts_to_combine(rng: Random) -> Question:
    """Return the question about the cities in which ASKED people work."""
    work, stands = rng.choice(PHRASINGS)
    told = list(zip(*(rng.sample(pool, PEOPLE_TOLD) for pool in (PEOPLE, WORKPLACES, CITIES)), strict=True))
    facts = [work.format(person=person, place=place) for person, place, _ in told]
    facts += [stands.format(place=place, city=city) for _, place, city in told]
    wanted = told[:ASKED]
    people = listed([person for person, _, _ in wanted])
    return Question(
        asked=f"In which cities do {people} work? Answer with one line for each of them, in this order, in the form "
        '"PERSON works at the PLACE in CITY."',
        reply=lines([(f"{person} works at the {place} in ", city) for person, place, city in wanted], "."),
        intro=rng.choice(INTROS),
        facts=tuple(rng.sample(facts, len(facts))),
    )
