"""The text of each token of a prompt, so that the pieces put together are the text."""

import codecs
from collections.abc import Sequence

from ..testbed import Tokenizer

BEFORE = 8  # tokens decoded before a piece: a tokenizer may drop the space that begins a text
LETTER = 4  # most bytes of a letter in UTF-8, so most tokens that one can be cut into
LOST = "\N{REPLACEMENT CHARACTER}"


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; a letter cut into several tokens is the last one's, and the others have none.

    A byte that is in no letter is a replacement character.
    """
    found: list[str] = []
    while len(found) < len(tokens):
        found += _next(tokenizer, tokens, len(found))
    return found


def _next(tokenizer: Tokenizer, tokens: Sequence[int], at: int) -> list[str]:
    """Return the text of the token at `at`, and of those after it that are the rest of its last letter."""
    before = tokens[max(at - BEFORE, 0) : at]
    data = tokenizer.decode_after(before, tokens[at : at + 1])
    first = data.decode(errors="replace")
    if not _may_go_on(data):
        return [first]
    for end in range(at + 2, min(at + LETTER, len(tokens)) + 1):
        text = tokenizer.decode_after(before, tokens[at:end]).decode(errors="replace")
        if LOST not in text:
            return [*[""] * (end - at - 1), text]
        if not text.endswith(LOST):  # another letter has begun, so the first was none
            break
    return [first]


def _may_go_on(data: bytes) -> bool:
    """Return whether more bytes could make a letter of the last ones, for which a tokenizer may have put LOST."""
    if data.endswith(LOST.encode()):
        return True
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return not decoder.decode(data).endswith(LOST) and decoder.getstate()[0] != b""
