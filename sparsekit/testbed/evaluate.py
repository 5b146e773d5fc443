"""Gets greedy answers and scores them, for any causal model of transformers with its tokenizer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sample import Sample
from .tokenizer import ByteTokenizer, Tokenizer

BYTES = ByteTokenizer()
How = Callable[[], AbstractContextManager[Any]]  # the context of a prefill, such as lambda: sparsify(model, pipeline)


@dataclass(frozen=True)
class Score:
    """A model's answer to one sample, with its score."""

    task: str
    length: int  # bytes of prompt
    digits: int  # scored bytes
    right: int  # scored bytes that are right
    whole: bool  # every byte of the answer is right
    answer: bytes
    answers: int  # values in question
    found: int  # values whose scored bytes are all right

    @property
    def part(self) -> float:
        """The part of the values that the model found, in [0, 1]."""
        return self.found / self.answers


def generate_answer(model: Any, prompt: bytes, n: int, tokenizer: Tokenizer = BYTES) -> bytes:
    """Generate `n` bytes greedily: one prefill, then one-token steps."""
    if not prompt:
        raise ValueError("prompt is empty; pass at least one byte")
    if n < 1:
        raise ValueError(f"n={n} bytes cannot be generated; pass 1 or more")
    read = tokenizer.encode(prompt)
    ids = torch.tensor([read], device=model.device)
    tokens: list[int] = []
    with torch.no_grad():
        out = model(ids, use_cache=True, logits_to_keep=1)
        tokens.append(int(out.logits[0, -1].argmax()))
        while len(answer := tokenizer.decode_after(read, tokens)) < n and len(tokens) < n:
            ids = torch.tensor([tokens[-1:]], device=model.device)
            out = model(ids, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            tokens.append(int(out.logits[0, -1].argmax()))
    return answer[:n]


def ask(model: Any, sample: Sample, tokenizer: Tokenizer = BYTES, how: How = nullcontext) -> Score:
    """Return the Score of one sample whose prompt is read inside `with how():`.

    A byte model reads the right answer in one dense pass over the prompt's cache, outside `how`. Its answer is the
    likeliest byte at each place, given the right bytes before it. So `whole` is what greedy generation would give, up
    to rounding, in one short pass instead of one step per byte, and a value may be found even if those before it were
    not. The tokens of other tokenizers are not bytes: their models generate step by step inside `how`, where one-token
    steps are dense. If a sample's answer is read inside the prompt, a byte model reads all of it inside `how`; other
    models are asked for the last value only.
    """
    if not isinstance(tokenizer, ByteTokenizer):
        sample = sample.last() if sample.inside else sample
        with how():
            return score(sample, generate_answer(model, sample.prompt, len(sample.answer), tokenizer))
    within = len(sample.answer) - 1 if sample.inside else 0
    read, after = sample.prompt + sample.answer[:within], sample.answer[within:-1]
    with torch.no_grad():
        with how():
            out = model(_ids(read, model.device), use_cache=True, logits_to_keep=within + 1)
        likeliest = out.logits[0].argmax(-1).tolist()
        if after:
            out = model(_ids(after, model.device), past_key_values=out.past_key_values, use_cache=True)
            likeliest += out.logits[0].argmax(-1).tolist()
    return score(sample, tokenizer.decode_after([], likeliest))


def evaluate(
    model: Any,
    samples: Sequence[Sample],
    on_step: Callable[[int, int, Score], None] | None = None,
    tokenizer: Tokenizer = BYTES,
    how: How = nullcontext,
) -> list[Score]:
    """Return the Score of each sample by `ask`, in order. `on_step(done, total, score)` is called after each."""
    scores = []
    for sample in samples:
        scores.append(ask(model, sample, tokenizer, how))
        if on_step is not None:
            on_step(len(scores), len(samples), scores[-1])
    return scores


def _ids(text: bytes, device: torch.device) -> Tensor:
    """Return bytes as tokens [1, n], through a buffer: a Python list would take longer than a prefill."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device).long()[None]


def score(sample: Sample, answer: bytes) -> Score:
    """Return the Score of `answer` as the answer to `sample`."""
    right = {i for i in sample.scored if answer[i : i + 1] == sample.answer[i : i + 1]}
    values = sample.values
    return Score(
        task=sample.task,
        length=len(sample.prompt),
        digits=len(sample.scored),
        right=len(right),
        whole=answer == sample.answer,
        answer=answer,
        answers=len(values),
        found=sum(right.issuperset(value) for value in values),
    )
