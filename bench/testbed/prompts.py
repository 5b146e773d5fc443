"""Training prompts: text with many facts of all tasks in it, and the questions for all of them at the end.

The first question of a prompt is the evaluation's own setting; those after it are supervision for the price of
a few bytes. Keys come from the training side of the split, and some differ from another in one letter only, so
that a key has to be matched whole.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from sparsekit.testbed.sample import Fact, cut, hide, keys
from sparsekit.testbed.tasks.multi_value import draw as values
from sparsekit.testbed.tasks.single_key import draw as value
from sparsekit.testbed.tasks.variable_tracking import draw as chain

Draw = Callable[[Random, Iterator[str], int], Fact]
# single_key's wording is multi_key's too, and the base of both: twice the share.
DRAWS: tuple[Draw, ...] = (value, value, values, chain)
MOST = 256
LOOKALIKES = 0.15


def training_prompt(text: bytes, length: int, rng: Random) -> tuple[bytes, bytes]:
    """A prompt of `length` bytes with its answers, and a byte for each byte: 1 where it is an answer's."""
    names = keys(rng, evaluation=False, lookalikes=LOOKALIKES)
    wanted = 1 + int(min(MOST, length // 128) * rng.random() ** 2)
    one_wording = rng.random() < 0.5
    draw, phrasing = rng.choice(DRAWS), rng.randrange(60)
    facts: list[Fact] = []
    size = length
    while len(facts) < wanted:
        if not one_wording:
            draw, phrasing = rng.choice(DRAWS), rng.randrange(60)
        new = draw(rng, names, phrasing)
        size -= sum(len(line) for line in new.lines) + len(new.question) + len(new.answer) + 1
        if facts and size < length // 2:
            break
        facts.append(new)
    order = rng.sample(facts, len(facts))
    tail = b"".join(fact.question + fact.answer + b"\n" for fact in order)
    marks = b"".join(bytes(len(fact.question)) + b"\1" * len(fact.answer) + b"\0" for fact in order)
    room = length - len(tail) - sum(len(line) for fact in facts for line in fact.lines)
    prompt = hide(cut(text, room, rng), facts, rng) + tail
    return prompt, bytes(length - len(marks)) + marks


class Batches(IterableDataset):
    """Endless batches of `tokens` bytes in all: the main length most of the time, else one of the shorter ones."""

    def __init__(self, text: bytes, tokens: int, length: int, shorter: Sequence[int], main: float, seed: int):
        self.text, self.tokens, self.length = text, tokens, length
        self.shorter, self.main, self.seed = tuple(shorter), main, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        rng = Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            length = self.length
            if self.shorter and rng.random() >= self.main:
                length = rng.choice(self.shorter)
            pairs = [training_prompt(self.text, length, rng) for _ in range(self.tokens // length)]
            yield _stack([prompt for prompt, _ in pairs]), _stack([marks for _, marks in pairs])


def _stack(rows: Sequence[bytes]) -> torch.Tensor:
    array: NDArray[np.uint8] = np.stack([np.frombuffer(row, dtype=np.uint8) for row in rows])
    return torch.from_numpy(array)
