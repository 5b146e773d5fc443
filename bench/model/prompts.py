"""Training prompts: text with many facts in it, and the questions for all of them at the end.

The first question of a prompt is as in the evaluation. Those after it add supervision for a few bytes each. Keys and
words come from the training side of the split. Some keys differ from another in one letter only, so that the model has
to match a whole key.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from sparsekit.testbed.sample import Fact, cut, fact, hide, keys, words
from sparsekit.testbed.tasks.common_words import draw as common
from sparsekit.testbed.tasks.copy_span import draw as span
from sparsekit.testbed.tasks.frequent_words import draw as frequent
from sparsekit.testbed.tasks.key_value import LINE
from sparsekit.testbed.tasks.key_value import draw as pairs
from sparsekit.testbed.tasks.multi_value import draw as values
from sparsekit.testbed.tasks.number_string import PHRASINGS, in_runs
from sparsekit.testbed.tasks.number_string import draw as number
from sparsekit.testbed.tasks.question_answering import draw as people
from sparsekit.testbed.tasks.single_key import PHRASINGS as KEYED
from sparsekit.testbed.tasks.single_key import draw as value
from sparsekit.testbed.tasks.variable_tracking import draw as chain

Draw = Callable[[Random, Iterator[str], Iterator[str], int], Fact]
MOST = 256  # facts
BLOCK = 0.1, 0.85  # least and largest part of a prompt that a block takes
SPAN = 6, 20  # words
LOOKALIKES = 0.15


def _span(rng: Random, names: Iterator[str], spoken: Iterator[str], phrasing: int) -> Fact:
    return span(rng, spoken, phrasing, rng.randint(*SPAN))


def _runs(rng: Random, names: Iterator[str], spoken: Iterator[str], phrasing: int) -> Fact:
    """Return a number as in number_string, with a key, so that a prompt can hold many."""
    before, after = KEYED[phrasing % len(KEYED)]
    before, digits = before.format(key=next(names)), in_runs(rng)
    return fact([before + digits + after], before, [(digits, True)])


def _of_keys(draw: Callable[[Random, Iterator[str], int], Fact]) -> Draw:
    return lambda rng, names, spoken, phrasing: draw(rng, names, phrasing)


# By task, one fact of many. single_key's wording is multi_key's too, and the base of all: twice the share.
FACTS: dict[str, tuple[Draw, ...]] = {
    "single_key": (_of_keys(value),) * 2,
    "multi_value": (_of_keys(values),),
    "variable_tracking": (_of_keys(chain),),
    "number_string": (_runs,),
    "copy_span": (_span,) * 2,
}
BLOCKS = "key_value", "key_value", "common_words", "frequent_words"  # at most one in a prompt
NEEDLES = "single_key", "multi_key", "multi_value", "variable_tracking"
ALL = tuple(dict.fromkeys((*NEEDLES, *FACTS, *BLOCKS, "question_answering")))


def training_prompt(text: bytes, length: int, rng: Random, tasks: Collection[str]) -> tuple[bytes, bytes]:
    """Return a prompt of `length` bytes with its answers, and a byte for each byte: 1 if it belongs to an answer."""
    names, spoken = keys(rng, evaluation=False, lookalikes=LOOKALIKES), words(rng, evaluation=False)
    draws = [draw for task, shares in FACTS.items() if task in tasks for draw in shares]
    facts: list[Fact] = []
    left = length
    for group in _groups(length, rng, names, spoken, tasks):
        if _size(group) < left - length // 16:
            facts += group
            left -= _size(group)
    least = left // 2  # bytes of text
    wanted = len(facts) + 1 + int(min(MOST, length // 128) * rng.random() ** 2)
    one_wording = rng.random() < 0.5
    draw, phrasing = rng.choice(draws), rng.randrange(60)
    while len(facts) < wanted:
        if not one_wording:
            draw, phrasing = rng.choice(draws), rng.randrange(60)
        new = draw(rng, names, spoken, phrasing)
        left -= _size([new])
        if facts and left < least:
            break
        facts.append(new)
    order = rng.sample(facts, len(facts))
    tail = b"".join(one.question + one.answer + b"\n" for one in order)
    marks = b"".join(bytes(len(one.question)) + b"\1" * len(one.answer) + b"\0" for one in order)
    room = length - len(tail) - sum(len(line) for one in facts for line in one.lines)
    prompt = hide(cut(text, room, rng), facts, rng) + tail
    return prompt, bytes(length - len(marks)) + marks


def _groups(
    length: int, rng: Random, names: Iterator[str], spoken: Iterator[str], tasks: Collection[str]
) -> Iterator[list[Fact]]:
    """Yield groups of facts that stand together in a prompt, each with its questions; some prompts have no group."""
    if rng.random() < 0.3:
        return
    if "number_string" in tasks and rng.random() < 0.5:
        for phrasing in rng.sample(range(len(PHRASINGS)), rng.randint(1, 2)):
            yield [number(rng, phrasing)]  # each wording once: nothing else tells them apart
    block, part = rng.choice(BLOCKS), rng.uniform(*BLOCK)
    size = max(500, int(length * part))
    if block == "key_value" and block in tasks:
        asked = min(60, size // LINE, 1 + int((0.95 - part) * length) // 64)
        yield pairs(rng, names, size // LINE, asked)
    elif block == "common_words" and block in tasks:
        yield [common(rng, spoken, size)]
    elif block == "frequent_words" and block in tasks:
        yield [frequent(rng, spoken, size)]
    if "question_answering" in tasks and rng.random() < 0.5:
        n = rng.randint(4, max(4, min(64, length // 512)))
        yield people(rng, spoken, n, rng.randint(1, max(1, min(n, length // 1024))))


def _size(facts: Sequence[Fact]) -> int:
    """Return the number of bytes of the facts' lines, questions and answers."""
    return sum(sum(map(len, one.lines)) + len(one.question) + len(one.answer) + 1 for one in facts)


class Batches(IterableDataset):
    """Endless batches of `tokens` bytes each: mostly prompts of the main length, sometimes of a shorter one."""

    def __init__(
        self,
        text: bytes,
        tokens: int,
        length: int,
        shorter: Sequence[int],
        main: float,
        tasks: Collection[str],
        seed: int,
    ):
        self.text, self.tokens, self.length = text, tokens, length
        self.shorter, self.main, self.tasks, self.seed = tuple(shorter), main, tuple(tasks), seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        rng = Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            length = self.length
            if self.shorter and rng.random() >= self.main:
                length = rng.choice(self.shorter)
            pairs = [training_prompt(self.text, length, rng, self.tasks) for _ in range(self.tokens // length)]
            yield _stack([prompt for prompt, _ in pairs]), _stack([marks for _, marks in pairs])


def _stack(rows: Sequence[bytes]) -> torch.Tensor:
    array: NDArray[np.uint8] = np.stack([np.frombuffer(row, dtype=np.uint8) for row in rows])
    return torch.from_numpy(array)
