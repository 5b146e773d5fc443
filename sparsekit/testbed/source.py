"""The byte tasks as a source of cases for the evaluation, for models whose tokens are bytes like the embedded one."""

from collections.abc import Mapping, Sequence
from random import Random

from ..checks import check_choice
from ..evaluation.case import Case, Passage, identity
from .sample import cut
from .tasks import CLAIMED, TASKS, TRAINED

AFTER = 512  # bytes of a passage's following text


class Bytes:
    """The source of byte cases about a text. A length is the bytes of the prompt, without the answer."""

    unit = "bytes"

    def __init__(self, text: bytes, following: int = AFTER) -> None:
        self._text, self._following = text, following
        self._identity = identity(text)

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """The tasks by group: all, those that a claim may rest on, and those that the embedded model was trained on."""
        return {"all": tuple(TASKS), "claimed": CLAIMED, "trained": TRAINED}

    @property
    def identity(self) -> str:
        """A text that identifies the source's text."""
        return self._identity

    def case(self, task: str, seed: int, length: int) -> Case:
        """Return the case of a prompt of exactly `length` bytes."""
        check_choice("tasks", task, tuple(TASKS))
        sample = TASKS[task](self._text, length, seed)
        inside = len(sample.answer) - 1 if sample.inside else 0
        return Case(task, seed, length, tuple(sample.prompt), tuple(sample.answer), sample.values, inside)

    def passage(self, seed: int, length: int) -> Passage:
        """Return `length` bytes of the text, and the bytes that follow them."""
        window = cut(self._text, length + self._following, Random(seed))
        return Passage(seed, length, tuple(window[:length]), tuple(window[length:]))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return bytes as text, one letter for each byte."""
        return bytes(token % 256 for token in tokens).decode("latin-1")
