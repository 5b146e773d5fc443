"""The question of a task, as text without a tokenizer; words.py makes a case of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question about a document, and the right reply to it.

    The document is real text with `facts` hidden in it or, with `rows`, as many of the first rows as fit.
    """

    asked: str  # the text of the question, after the document
    reply: tuple[tuple[str, bool], ...]  # in pieces, each with whether it is a value in question
    intro: str = ""  # text before the document
    facts: tuple[str, ...] = ()  # whole lines each, in order, spread over the document
    rows: Iterable[str] | None = None  # endless, read once; the answer must be the same for any number of rows
    least: int = 1  # fewest lines of text, or rows, with which the question makes sense
    further: int = 0  # tokens of further text between the question and the reply


def listed(items: Sequence[str]) -> str:
    """Return items as a list in words: "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def lines(pairs: Iterable[tuple[str, str]], end: str = "") -> tuple[tuple[str, bool], ...]:
    """Return a reply with one line for each pair (lead, value): the lead, the value, and `end`."""
    pieces: list[tuple[str, bool]] = []
    for lead, value in pairs:
        pieces += [(f"{end}\n{lead}" if pieces else lead, False), (value, True)]
    return (*pieces, (end, False)) if end else tuple(pieces)
