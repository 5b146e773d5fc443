"""What a model is asked, in tokens, and where such cases come from: in bytes for the embedded model, in words for any.

Where the tasks came from, and how they were put into words, is past here: a case is all that a judge needs.
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
    length: int  # asked for, in the unit of the source
    prompt: tuple[int, ...]  # token ids, at least one; the prefill reads them
    reply: tuple[int, ...]  # token ids that should come next, at least one
    values: tuple[tuple[int, ...], ...]  # places in `reply` of the tokens of each value that was asked for
    inside: int = 0  # first tokens of the reply that the prefill reads too, at most all but the last


@dataclass(frozen=True)
class Passage:
    """Real text, and what follows it there."""

    seed: int
    length: int  # asked for, in the unit of the source
    prompt: tuple[int, ...]  # token ids, at least one
    following: tuple[int, ...]  # token ids, at least one


class Source(Protocol):
    """Where cases come from."""

    @property
    def unit(self) -> str:
        """Return what lengths are counted in: "bytes" or "tokens"."""

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Return tasks by the name of a group; "all" is one, "claimed" another: what a claim may rest on."""

    @property
    def identity(self) -> str:
        """Return what tells the text apart from another: records of two texts do not stand side by side."""

    def case(self, task: str, seed: int, length: int) -> Case:
        """Return the case, or raise ValueError for what cannot be asked."""

    def passage(self, seed: int, length: int) -> Passage:
        """Return real text of that length with what follows it, or raise ValueError for a text too short."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text."""


def identity(text: bytes) -> str:
    """Return the size and a hash of a text."""
    return f"{len(text)} bytes, sha256 {hashlib.sha256(text).hexdigest()[:12]}"
