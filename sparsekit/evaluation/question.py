"""What a task asks, in words and without a tokenizer: words.py makes a case of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question about a document, and the right reply to it.

    The document is real text with `facts` hidden in it or, with `rows`, as many of the first rows as fit.
    """

    asked: str  # stands after the document
    reply: tuple[tuple[str, bool], ...]  # in pieces, each with whether it is a value asked for
    intro: str = ""  # stands before the document
    facts: tuple[str, ...] = ()  # of whole lines, in their order, spread over the document
    rows: Iterable[str] | None = None  # endless, read once; the answer must be the same for any number of rows
    least: int = 1  # lines of text, or rows, without which the question cannot be asked
    further: int = 0  # tokens of further text between the question and the reply


def listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def lines(pairs: Iterable[tuple[str, str]], end: str = "") -> tuple[tuple[str, bool], ...]:
    """Return a reply of a line for each pair: what leads to the value, the value, and the end."""
    found: list[tuple[str, bool]] = []
    for lead, value in pairs:
        found += [(f"{end}\n{lead}" if found else lead, False), (value, True)]
    return (*found, (end, False)) if end else tuple(found)
