"""Greedy answers and their score. Works with any causal model of transformers and its tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .sample import Sample
from .tokenizer import ByteTokenizer, Tokenizer

BYTES = ByteTokenizer()


@dataclass(frozen=True)
class Score:
    """What the model answered to one sample."""

    task: str
    length: int  # bytes of prompt
    digits: int  # scored digits
    right: int  # of them, as they should be
    whole: bool  # every byte of the answer as it should be
    answer: bytes


def generate_answer(model: Any, prompt: bytes, n: int, tokenizer: Tokenizer = BYTES) -> bytes:
    """The `n` bytes that the model finds most likely, one token after another: one prefill, then one-token steps."""
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


def evaluate(
    model: Any,
    samples: Sequence[Sample],
    on_step: Callable[[int, int, Score], None] | None = None,
    tokenizer: Tokenizer = BYTES,
) -> list[Score]:
    """A Score for each sample, in order. `on_step(done, total, score)` is called after each."""
    scores = []
    for sample in samples:
        scores.append(score(sample, generate_answer(model, sample.prompt, len(sample.answer), tokenizer)))
        if on_step is not None:
            on_step(len(scores), len(samples), scores[-1])
    return scores


def score(sample: Sample, answer: bytes) -> Score:
    right = sum(answer[i : i + 1] == sample.answer[i : i + 1] for i in sample.scored)
    return Score(sample.task, len(sample.prompt), len(sample.scored), right, answer == sample.answer, answer)
