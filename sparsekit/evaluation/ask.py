"""Asks a model questions, and measures its loss on the text that follows a prompt.

The method under test reads the prompt. One short dense pass over the prompt's cache, like a generation, then reads the
right reply or the text that follows. Each token is judged given the right tokens before it. So a value counts as found
if greedy generation would give it, up to rounding, even if the values before it were wrong.
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

How = Callable[[], AbstractContextManager[Any]]  # the context of a prefill, such as lambda: sparsify(model, pipeline)
PIECE = 128  # tokens whose probabilities are compared at a time: a vocabulary is long


@dataclass(frozen=True)
class Answer:
    """A model's answer to a case."""

    found: tuple[bool, ...]  # for each value, whether all its tokens are the likeliest
    likeliest: tuple[int, ...]  # the likeliest token at each place of the reply, given the right ones before it


@dataclass(frozen=True)
class After:
    """Figures of the text that follows a prompt, means over its tokens."""

    nll: float  # loss, nats per token
    kl: float  # divergence from dense attention's distribution, nats
    agreement: float  # part of the tokens where the likeliest one is dense attention's, in [0, 1]


def ask(model: Any, case: Case, how: How = nullcontext) -> Answer:
    """Return the model's answer to a case whose prompt is read inside `with how():`.

    The first `case.inside` tokens of the reply are read in the same pass as the prompt, as the earlier turns of a
    conversation are.
    """
    split = case.inside
    likeliest = [
        part.argmax(-1)
        for part in _logits(model, (*case.prompt, *case.reply[:split]), case.reply[split:-1], how, split + 1)
    ]
    tokens = tuple(torch.cat(likeliest).tolist())
    found = tuple(all(tokens[at] == case.reply[at] for at in value) for value in case.values)
    return Answer(found, tokens)


def log_probabilities(model: Any, passage: Passage, how: How = nullcontext) -> Tensor:
    """Return the model's log-probabilities at each token that follows a prompt read inside `with how():`.

    [n, vocabulary] float32, on the model's device: 300 MB for 512 tokens of a vocabulary of 152,000.
    """
    parts = _logits(model, passage.prompt, passage.following[:-1], how, 1)
    return torch.cat([F.log_softmax(part.float(), -1) for logits in parts for part in logits.split(PIECE)])


def after(ours: Tensor, dense: Tensor, following: Sequence[int]) -> After:
    """Compare log-probabilities [n, vocabulary] of the text that follows with those of dense attention."""
    wanted = torch.tensor(following, device=ours.device)
    pieces = list(zip(ours.split(PIECE), dense.split(PIECE), strict=True))
    kl = sum(float(F.kl_div(p, p_dense, reduction="sum", log_target=True)) for p, p_dense in pieces)
    agree = sum(int((p.argmax(-1) == p_dense.argmax(-1)).sum()) for p, p_dense in pieces)
    nll = float(F.nll_loss(ours, wanted))
    return After(nll, max(0.0, kl / len(following)), agree / len(following))  # rounding must not make it negative


@torch.no_grad()
def _logits(model: Any, read: Sequence[int], rest: Sequence[int], how: How, last: int) -> list[Tensor]:
    """Return the logits [n, vocabulary] of the last tokens of `read`, read inside `how`, and of `rest`, read after."""
    keep = {"logits_to_keep": last} if "logits_to_keep" in signature(model.forward).parameters else {}  # most have it
    with how():
        out = model(torch.tensor([read], device=model.device), use_cache=True, **keep)
    logits = [out.logits[0, -last:]]
    if rest:
        ids = torch.tensor([rest], device=model.device)
        logits.append(model(ids, past_key_values=out.past_key_values, use_cache=True).logits[0])
    return logits
