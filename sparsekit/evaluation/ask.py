"""Asking a model: is each value of the right reply the likeliest, and what becomes of the text that follows a prompt?

The prompt is read by the method under test. The reply, or the text that follows, is read in one short dense pass over
the cache that the prompt left, as a generation would be; each token is judged given the right ones before it. So a
value counts as found if greedy generation would give it, up to rounding, whatever came of the values before it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .case import Case, Passage

How = Callable[[], AbstractContextManager[Any]]  # what a prefill runs inside, such as lambda: sparsify(model, pipeline)
PIECE = 128  # tokens whose probabilities are compared at a time: a vocabulary is long


@dataclass(frozen=True)
class Answer:
    """What a model says to a case."""

    found: tuple[bool, ...]  # of each value, whether all its tokens are the likeliest
    likeliest: tuple[int, ...]  # the likeliest token at each place of the reply, given the right ones before it


@dataclass(frozen=True)
class After:
    """What becomes of the text that follows a prompt, means over its tokens."""

    nll: float  # loss, nats per token
    kl: float  # of the distribution from dense attention's, nats
    agreement: float  # part of the tokens at which the likeliest one is dense attention's, in [0, 1]


def ask(model: Any, case: Case, how: How = nullcontext) -> Answer:
    """Return what the model says to a case whose prompt is read inside `with how():`.

    The first `case.inside` tokens of the reply are read in the same pass as the prompt, as the earlier turns of a
    conversation are.
    """
    split = case.inside
    likeliest = [
        part.argmax(-1)
        for part in _logits(model, (*case.prompt, *case.reply[:split]), case.reply[split:-1], how, split + 1)
    ]
    said = tuple(torch.cat(likeliest).tolist())
    found = tuple(all(said[at] == case.reply[at] for at in value) for value in case.values)
    return Answer(found, said)


def log_probabilities(model: Any, passage: Passage, how: How = nullcontext) -> Tensor:
    """Return the model's log-probabilities at each token that follows a prompt read inside `with how():`.

    [n, vocabulary] float32, on the model's device: 300 MB for 512 tokens of a vocabulary of 152,000.
    """
    parts = _logits(model, passage.prompt, passage.following[:-1], how, 1)
    return torch.cat([F.log_softmax(part.float(), -1) for logits in parts for part in logits.split(PIECE)])


def after(ours: Tensor, dense: Tensor, following: Sequence[int]) -> After:
    """Return what log-probabilities [n, vocabulary] say of the text that follows, beside those of dense attention."""
    wanted = torch.tensor(following, device=ours.device)
    pieces = [(mine, theirs) for mine, theirs in zip(ours.split(PIECE), dense.split(PIECE), strict=True)]
    kl = sum(float(F.kl_div(mine, theirs, reduction="sum", log_target=True)) for mine, theirs in pieces)
    agree = sum(int((mine.argmax(-1) == theirs.argmax(-1)).sum()) for mine, theirs in pieces)
    nll = float(F.nll_loss(ours, wanted))
    return After(nll, max(0.0, kl / len(following)), agree / len(following))  # rounding must not make it negative


@torch.no_grad()
def _logits(model: Any, read: Sequence[int], rest: Sequence[int], how: How, last: int) -> list[Tensor]:
    """Return the logits [n, vocabulary] of the last tokens of a prompt read inside `how`, and of the rest, outside."""
    keep = {"logits_to_keep": last} if "logits_to_keep" in signature(model.forward).parameters else {}  # few have none
    with how():
        out = model(torch.tensor([read], device=model.device), use_cache=True, **keep)
    found = [out.logits[0, -last:]]
    if rest:
        ids = torch.tensor([rest], device=model.device)
        found.append(model(ids, past_key_values=out.past_key_values, use_cache=True).logits[0])
    return found
