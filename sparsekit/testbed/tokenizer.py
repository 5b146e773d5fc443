"""Translates bytes of text into the tokens of a model, and back."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, Protocol

TAIL = 8  # prompt tokens decoded with an answer: some tokenizers drop the first token's leading space


class Tokenizer(Protocol):
    """The interface between text and a model's tokens."""

    any_bytes: ClassVar[bool]  # whether it encodes every byte, even outside a valid text

    def encode(self, text: bytes) -> list[int]:
        """Return the tokens of a text."""

    def decode_after(self, prompt: Sequence[int], tokens: Sequence[int]) -> bytes:
        """Return the text that `tokens` add to a prompt."""

    def starts(self, text: bytes) -> list[int]:
        """Return the byte at which each token of `encode(text)` begins."""


class ByteTokenizer:
    """The tokenizer of models whose tokens are bytes, such as the embedded model; they can read any file."""

    any_bytes: ClassVar[bool] = True

    def encode(self, text: bytes) -> list[int]:
        return list(text)

    def decode_after(self, prompt: Sequence[int], tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    def starts(self, text: bytes) -> list[int]:
        return list(range(len(text)))


class TextTokenizer:
    """A tokenizer of transformers. Bytes that are not UTF-8, such as a letter that is cut in two, are replaced.

    Files that are not text are refused when they are read: `sparsekit.testbed.text.as_utf8`.
    """

    any_bytes: ClassVar[bool] = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: bytes) -> list[int]:
        return self._tokenizer(text.decode(errors="replace"), verbose=False)["input_ids"]

    def decode_after(self, prompt: Sequence[int], tokens: Sequence[int]) -> bytes:
        tail = list(prompt[-TAIL:])
        before, whole = (self._tokenizer.decode(ids, skip_special_tokens=True) for ids in (tail, [*tail, *tokens]))
        return whole[len(before) :].encode()

    def starts(self, text: bytes) -> list[int]:
        """Return the byte at which each token begins. Raises ValueError for a slow tokenizer, which has no offsets."""
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"tokenizer: got {type(self._tokenizer).__name__}, which does not say where its tokens begin; pass a "
                "fast one of transformers"
            )
        decoded = text.decode(errors="replace")
        pairs = self._tokenizer(decoded, verbose=False, return_offsets_mapping=True)["offset_mapping"]
        at = [0, *accumulate(len(letter.encode()) for letter in decoded)]
        return [at[start] for start, _ in pairs]
