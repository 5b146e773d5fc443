"""One line with a number of ten digits, in runs of the same digit, hidden in the text. The question asks for it.

The runs make it hard to copy: the digits before do not tell how many more of the same digit follow. All ten digits are
scored.

Source: InfiniteBench (arXiv:2402.13718), Retrieve.Number. The wordings differ from those of single_key, whose numbers
have five digits.
"""

from random import Random

from ..sample import Fact, Sample, check_length, compose, fact

DIGITS = 10
LONGEST = 3  # digits of the longest run

# The texts before and after the digits.
PHRASINGS = (
    ("# Remember this sequence of digits: ", ""),
    ("# Remember the sequence of digits, which is ", "."),
    ("# There is a sequence of digits to remember here. The sequence of digits is ", "."),
)


def draw(rng: Random, phrasing: int) -> Fact:
    """Return the fact of a number in the wording PHRASINGS[phrasing]."""
    before, after = PHRASINGS[phrasing]
    digits = in_runs(rng)
    return fact([before + digits + after], before, [(digits, True)])


def number_string(text: bytes, length: int, seed: int) -> Sample:
    check_length(length)
    rng = Random(seed)
    return compose("number_string", text, length, rng, draw(rng, rng.randrange(len(PHRASINGS))))


def in_runs(rng: Random) -> str:
    """Return DIGITS digits in runs of 1 to LONGEST."""
    digits = ""
    while len(digits) < DIGITS:
        digits += rng.choice("0123456789".replace(digits[-1:] or " ", "")) * rng.randint(1, LONGEST)
    return digits[:DIGITS]
