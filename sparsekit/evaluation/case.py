"""Cases: prompts with their right replies, as tokens; and the interface of a source that makes them.

There are two sources: byte tasks for the embedded model, and tasks in words for any model. Code that asks a model
needs only the case, not its source.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Case:
    """A prompt and its right reply. The same for the same source, task, seed and length."""

    task: str
    seed: int
    length: int  # the requested length, in the unit of the source
    prompt: tuple[int, ...]  # token ids, at least one; the prefill reads them
    reply: tuple[int, ...]  # token ids that should come next, at least one
    values: tuple[tuple[int, ...], ...]  # for each value in question, the places of its tokens in `reply`
    inside: int = 0  # how many first tokens of the reply the prefill reads too, at most all but the last


@dataclass(frozen=True)
class Passage:
    """Real text, and the text that follows it in the source."""

    seed: int
    length: int  # the requested length, in the unit of the source
    prompt: tuple[int, ...]  # token ids, at least one
    following: tuple[int, ...]  # token ids, at least one


class Source(Protocol):
    """An object that makes cases."""

    @property
    def unit(self) -> str:
        """The unit of lengths: "bytes" or "tokens"."""

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Tasks by the name of a group: "all", and "claimed" for those that a claim may rest on."""

    @property
    def identity(self) -> str:
        """A text that identifies the source's text: records of different texts are not compared."""

    def case(self, task: str, seed: int, length: int) -> Case:
        """Return the case. Raises ValueError if this task cannot be asked at this length."""

    def passage(self, seed: int, length: int) -> Passage:
        """Return real text of that length with the text that follows. Raises ValueError if the text is too short."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text."""


def identity(text: bytes) -> str:
    """Return the size and a hash of a text."""
    return f"{len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()[:12]}"
