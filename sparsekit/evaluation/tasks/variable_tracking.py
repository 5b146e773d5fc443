"""Chains of assignments: a variable takes a number, the next variable takes the first one, and so on.

The question asks for the chain from its last variable back to the number. The right side of each assignment is a
value, and takes one retrieval to find. Other chains compete.

Source: RULER (arXiv:2404.06654), variable tracking. Differs from it: the reply follows the chain, and does not list all
variables.
"""

from random import Random

from ..question import Question, lines
from ..vocabulary import made_up, numbers

CHAIN = 4  # variables
OTHERS = 2  # chains
# Texts before the variable that is assigned to, between it and a number, and between it and another variable.
PHRASINGS = (("VAR ", " = ", " = VAR "), ("VARIABLE ", " := ", " := VARIABLE "), ("SET ", " TO ", " TO THAT OF "))
INTROS = (
    "Assignments to variables are hidden in the text below. Remember them: I will ask for some of them.",
    "Read the text below and follow the assignments of variables in it. I will ask for a chain of them.",
)


def variable_tracking(rng: Random) -> Question:
    """Return the request for the chain of assignments of a variable."""
    before, number, variable = rng.choice(PHRASINGS)
    names = made_up(rng, CHAIN * (1 + OTHERS), 2)
    chains = []
    for at, value in zip(range(0, len(names), CHAIN), numbers(rng, 1 + OTHERS), strict=True):
        chain = names[at : at + CHAIN]
        leads = [f"{before}{name}{variable if i else number}" for i, name in enumerate(chain)]
        chains.append(list(zip(leads, [value, *chain[:-1]], strict=True)))
    order = rng.sample([i for i in range(1 + OTHERS) for _ in range(CHAIN)], CHAIN * (1 + OTHERS))
    left = [iter(chain) for chain in chains]
    last = names[CHAIN - 1]
    return Question(
        asked=f"Repeat the assignment to {last} in the text above, then the assignment to the variable that it takes, "
        "and so on to the end of this chain, one line for each of them.",
        reply=lines(reversed(chains[0])),
        intro=rng.choice(INTROS),
        facts=tuple("".join(next(left[i])) for i in order),
    )
