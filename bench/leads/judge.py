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
from sparsekit.testbed.sample import cut

TEXT = "text"  # a task of no question: how well the text itself is gone on with
AFTER = 512  # bytes of it that are judged


def samples(text: bytes, task: str, length: int, seed: int) -> Sample:
    """A sample of a testbed task, or, as "text", a piece of the text and what comes after it."""
    if task != TEXT:
        return TASKS[task](text, length, seed)
    piece = cut(text, length + AFTER, Random(seed))
    return Sample(TEXT, piece[:length], piece[length:], tuple(range(AFTER)))


@torch.no_grad()
def judge(model: Any, sample: Sample, how: Callable[[], AbstractContextManager]) -> tuple[Score, float]:
    """The score that `ask` gives, and the bits per scored byte of the right answer, read densely after the prompt.

    Bits tell methods apart long before an answer is wrong.
    """
    prompt, answer = (torch.tensor([list(text)], device=model.device) for text in (sample.prompt, sample.answer))
    with how():
        out = model(prompt, use_cache=True, logits_to_keep=1)
    logits = [out.logits[0, -1:]]
    if len(sample.answer) > 1:
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
