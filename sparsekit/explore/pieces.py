"""Splits a prompt into the text of each token; the pieces joined are the prompt's text."""

import codecs
from collections.abc import Sequence

from ..testbed import Tokenizer

BEFORE = 8  # tokens decoded before a piece, because a tokenizer may drop the space that begins a text
LETTER = 4  # most bytes of a letter in UTF-8, so the most tokens that a letter can be cut into
LOST = "\N{REPLACEMENT CHARACTER}"


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; a letter cut into several tokens belongs to the last one, the others have "".

    A byte that is part of no letter becomes a replacement character.
    """
    texts: list[str] = []
    while len(texts) < len(tokens):
        texts += _next(tokenizer, tokens, len(texts))
    return texts


def _next(tokenizer: Tokenizer, tokens: Sequence[int], at: int) -> list[str]:
    """Return the text of the token at `at`, and of the tokens after it that complete its last letter."""
    before = tokens[max(at - BEFORE, 0) : at]
    data = tokenizer.decode_after(before, tokens[at : at + 1])
    first = data.decode(errors="replace")
    if not _may_go_on(data):
        return [first]
    for end in range(at + 2, min(at + LETTER, len(tokens)) + 1):
        text = tokenizer.decode_after(before, tokens[at:end]).decode(errors="replace")
        if LOST not in text:
            return [*[""] * (end - at - 1), text]
        if not text.endswith(LOST):  # another letter has begun, so the first bytes were no letter
            break
    return [first]


def _may_go_on(data: bytes) -> bool:
    """Return whether the data may end inside a letter; a tokenizer may have replaced such an end by LOST."""
    if data.endswith(LOST.encode()):
        return True
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return not decoder.decode(data).endswith(LOST) and decoder.getstate()[0] != b""
