"""Facts about made-up people, one line for each person, and a question about one of them that is worded differently.

A line gives a person's year of birth, town, trade and teacher, who is another of these people. The question asks for a
year of birth, a town, or the year in which a person's teacher was born, which takes two lines. There is one person for
every 1 KB of prompt, at least 4 and at most 64. The year or the town is scored.

Source: RULER (arXiv:2404.06654), question answering: single-hop like its SQuAD, two-hop like its HotpotQA. Differs from
it: the facts are made up from the seed, so that no model knows them, and lines are hidden instead of whole articles.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from ..sample import Fact, Sample, check_length, compose, fact, words

TRADES = ("baker", "carpenter", "glazier", "mason", "potter", "saddler", "tailor", "weaver")
PHRASINGS = (
    "# {name}, a {trade} from {town}, was born in {year} and learned from {teacher}.",
    "# Born in {year}, {name} lived in {town} and worked as a {trade}, taught by {teacher}.",
    "# In {town} there was a {trade} called {name}, born in {year}, who had {teacher} as a teacher.",
)
# Each question with the beginning of its answer.
YEAR = ("In which year was {name} born?", "{name}'s year of birth:")
TOWN = ("In which town did {name} live?", "{name}'s town:")
TEACHER = ("In which year was the teacher of {name} born?", "the year of birth of {name}'s teacher:")


def draw(rng: Random, spoken: Iterator[str], people: int, asked: int = 1) -> list[Fact]:
    """Return `asked` facts with a question each about `people` people, at least 4; the first holds all lines."""
    drawn = [word.capitalize() for word in islice(spoken, 2 * people)]
    names, towns = drawn[:people], drawn[people:]
    years = rng.sample(range(1400, 1900), people)
    teachers = [(i + 1) % people for i in range(people)]
    lines = [
        rng.choice(PHRASINGS).format(
            name=names[i], town=towns[i], year=years[i], trade=rng.choice(TRADES), teacher=names[teachers[i]]
        )
        for i in range(people)
    ]
    about: list[tuple[str, str]] = []
    for _ in range(asked):
        i = rng.randrange(people)
        (question, start), answer = rng.choice(
            [(YEAR, str(years[i])), (TOWN, towns[i]), (TEACHER, str(years[teachers[i]]))]
        )
        about.append((f"# Question: {question}\n# Answer: {start}".format(name=names[i]), answer))
    rng.shuffle(lines)
    return [
        fact([] if i else lines, question, [(" ", False), (answer, True)]) for i, (question, answer) in enumerate(about)
    ]


def question_answering(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    (asked,) = draw(rng, words(rng), max(4, min(64, length // 1024)))
    return compose("question_answering", text, length, rng, asked)
