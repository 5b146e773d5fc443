"""A conversation at the end of the prompt: questions and their right answers, one fact each; every answer is judged.

Only the last question stands in the last bytes of the prompt. A method that lets only those bytes vote may drop facts
that the earlier questions need, like the earlier turns of a conversation or the examples of a prompt.
"""

from random import Random

from ..sample import Fact, Sample, check_length, compose, keys
from .single_key import PHRASINGS, draw

TURNS = 16


def conversation(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    names = keys(rng)
    first, *later = facts = [draw(rng, names, rng.randrange(len(PHRASINGS))) for _ in range(TURNS)]
    answer, scored = first.answer, list(first.scored)
    for fact in later:
        answer += b"\n" + fact.question
        scored += [len(answer) + i for i in fact.scored]
        answer += fact.answer
    order = rng.sample(facts, TURNS)
    asked = Fact(tuple(line for fact in order for line in fact.lines), first.question, answer, tuple(scored))
    return compose("conversation", text, length, rng, asked, inside=True)
