"""What a variant makes of one prompt: the answer, how surprised the model is by the right one, and the work done."""

import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from sparsekit import Plan
from sparsekit.integrations.transformers import LayerCall
from sparsekit.testbed import TASKS, Sample
from sparsekit.testbed.evaluate import Score, score
from sparsekit.testbed.sample import cut, hide, keys
from sparsekit.testbed.tasks.single_key import PHRASINGS, draw

TEXT = "text"  # a task of no question: how well the text itself is gone on with
AFTER = 512  # bytes of it that are judged
QUESTIONS = "questions"  # many at the end of the prompt, each answered inside it, long before the last queries
ASKED = 24  # of them
ALL = (*TASKS, TEXT, QUESTIONS)
SEARCH = ("multi_key", TEXT, QUESTIONS, "multi_value", "multi_query", "copy_span")  # different kinds, none alike


def samples(text: bytes, task: str, length: int, seed: int) -> Sample:
    """A sample of a testbed task, or, as "text", a piece of the text and what comes after it, or "questions"."""
    if task == TEXT:
        piece = cut(text, length + AFTER, Random(seed))
        return Sample(TEXT, piece[:length], piece[length:], tuple(range(AFTER)))
    return questions(text, length, Random(seed)) if task == QUESTIONS else TASKS[task](text, length, seed)


def questions(text: bytes, length: int, rng: Random) -> Sample:
    """Facts as single_key's, and the questions for all of them; `answer` is all that follows the first question.

    The prompt and the answer without its last byte, which are read together, are `length` bytes.
    """
    names = keys(rng)
    facts = [draw(rng, names, rng.randrange(len(PHRASINGS))) for _ in range(min(ASKED, length // 256))]
    tail, scored = b"", []
    for fact in rng.sample(facts, len(facts)):
        tail += fact.question
        scored += [len(tail) + i for i in fact.scored]
        tail += fact.answer + b"\n"
    tail, first = tail[: scored[-1] + 1], scored[0]
    room = length + 1 - len(tail) - sum(len(line) for fact in facts for line in fact.lines)
    prompt = hide(cut(text, room, rng), facts, rng) + tail[:first]
    return Sample(QUESTIONS, prompt, tail[first:], tuple(i - first for i in scored))


def read(sample: Sample) -> bytes:
    """What is read inside a variant: the prompt, and of "questions" the answers to all but the last byte."""
    return sample.prompt + sample.answer[:-1] if sample.task == QUESTIONS else sample.prompt


@torch.no_grad()
def judge(model: Any, sample: Sample, how: Callable[[], AbstractContextManager]) -> tuple[Score, float]:
    """The score that `ask` gives, and the bits per scored byte of the right answer.

    Bits tell methods apart long before an answer is wrong. The answer is read densely after the prompt, as `ask` has
    it, but that of "questions", which is part of what a variant reads.
    """
    prompt, answer = (torch.tensor([list(text)], device=model.device) for text in (read(sample), sample.answer))
    within = len(read(sample)) - len(sample.prompt)
    with how():
        out = model(prompt, use_cache=True, logits_to_keep=within + 1)
    logits = [out.logits[0]]
    if len(sample.answer) > within + 1:
        logits.append(model(answer[:, :-1], past_key_values=out.past_key_values, use_cache=True).logits[0])
    every = torch.cat(logits).float()
    scored = torch.tensor(sample.scored, device=model.device)
    loss = torch.nn.functional.cross_entropy(every[scored], answer[0, scored])
    return score(sample, bytes(every.argmax(-1).tolist())), float(loss) / math.log(2)


@dataclass
class Seen:
    """What the layers of one prefill did; `watch` is for `sparsify`."""

    kept: list[float] = field(default_factory=list)  # by layer
    density: list[float] = field(default_factory=list)  # by layer: pairs computed, of those of dense attention
    reused: list[bool] = field(default_factory=list)  # by layer: whether the plan is the one of the layer before
    ms: list[float] = field(default_factory=list)  # by layer: deciding and attending
    last: Plan | None = None

    def watch(self, call: LayerCall) -> None:
        self.kept.append(round(call.plan.kept(call.problem), 5))
        self.density.append(round(call.plan.density(call.problem), 6))
        before = self.last and self.last.queries
        self.reused.append(before is not None and call.plan.queries is before)
        self.ms.append(round(call.ms, 4))
        self.last = call.plan

    def line(self) -> dict[str, Any]:
        """For a record."""
        return {
            "kept": self.kept,
            "density": self.density,
            "reused": sum(self.reused),
            "ms": round(sum(self.ms), 3),
            "work": round(statistics.mean(self.density), 6),
        }
