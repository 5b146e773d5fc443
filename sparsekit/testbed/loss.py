"""Held-out language-model loss, by position and after the prompt: the cost where nothing in particular is asked."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..parameters import check_count
from .evaluate import BYTES, How
from .sample import cut
from .tokenizer import Tokenizer

FIRST = 1024  # bytes of the first range, where the ranges double
PIECE = 1024  # tokens whose logits exist at a time
AFTER = 1024  # bytes that follow a prompt


@dataclass(frozen=True)
class Bits:
    """The loss of the tokens that begin in a range of positions."""

    start: int  # bytes into the window
    end: int  # the first byte after the range
    bits: float  # per byte


def bits_by_position(
    model: Any,
    text: bytes,
    length: int,
    seed: int,
    how: How = nullcontext,
    edges: Sequence[int] | None = None,
    tokenizer: Tokenizer = BYTES,
) -> list[Bits]:
    """Bits per byte of a window of `length` bytes of `text`, read at once inside `with how():`, by ranges of positions.

    The ranges lie between neighbouring `edges`, in bytes: by default 0, 1024, 2048, 4096, ... and `length`. `seed`
    chooses the window, which ends with a line. The first token is predicted from nothing and left out. Logits come in
    pieces, so memory is that of a prefill. Raises ValueError for a text too short, edges that do not rise from 0 to
    `length` or less or hold no token between them, and a model whose logits are more than its head's product.
    """
    edges = doubling(length) if edges is None else list(edges)
    _check(edges, length)
    window = cut(text, length, Random(seed))
    losses = _losses(model, torch.tensor([tokenizer.encode(window)], device=model.device), how)
    starts = torch.tensor([*tokenizer.starts(window), length], device="cpu")
    starts = starts.clamp(max=length)  # a replaced byte makes it longer
    sizes = (starts[1:] - starts[:-1])[1:].double()
    bits = losses.double().cpu() / math.log(2)
    at = torch.bucketize(starts[1:-1], torch.tensor(edges[1:-1], device="cpu"), right=True)
    inside = starts[1:-1] < edges[-1]
    found = []
    for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        mine = (at == i) & inside
        if not sizes[mine].sum() > 0:
            raise ValueError(f"edges: got a range {start} to {end} in which no predicted token begins; make it wider")
        found.append(Bits(start, end, float(bits[mine].sum() / sizes[mine].sum())))
    return found


def bits_after(
    model: Any,
    text: bytes,
    length: int,
    seed: int,
    how: How = nullcontext,
    after: int = AFTER,
    tokenizer: Tokenizer = BYTES,
) -> float:
    """Bits per byte of the `after` bytes of `text` that follow a window of `length` bytes read inside `with how():`.

    They are read as a generation is: after the prefill, outside of `how`, over the cache that it left. So this is what
    a prefill method costs the text that comes next. `seed` chooses the window. Raises ValueError for a text too short
    or no bytes after the window.
    """
    check_count("after", after, 1)
    window = cut(text, length + after, Random(seed))
    prompt, rest = (tokenizer.encode(part) for part in (window[:length], window[length:]))
    ids, wanted = (torch.tensor([part], device=model.device) for part in (prompt, rest))
    with torch.no_grad():
        with how():
            first = model(ids, use_cache=True, logits_to_keep=1)
        others = model(wanted, past_key_values=first.past_key_values, use_cache=True).logits[:, :-1]
    logits = torch.cat((first.logits, others), 1)[0].float()
    return float(F.cross_entropy(logits, wanted[0], reduction="sum")) / math.log(2) / after


def doubling(length: int) -> list[int]:
    """0, FIRST, 2 FIRST, 4 FIRST, ... and `length`."""
    edges = [0]
    while (edge := max(FIRST, 2 * edges[-1])) < length:
        edges.append(edge)
    return [*edges, length]


def _losses(model: Any, ids: Tensor, how: How) -> Tensor:
    """The cross-entropy of each token but the first, in nats."""  # ids [1, n] -> [n - 1]
    hidden: list[Tensor] = []
    head = model.get_output_embeddings()
    with torch.no_grad():
        with how(), model.base_model.register_forward_hook(lambda _, __, out: hidden.append(out.last_hidden_state)):
            last = model(ids, use_cache=False, logits_to_keep=1).logits
        if not head(hidden[0][:, -1:]).equal(last):
            raise ValueError(
                f"model: got {type(model).__name__}, whose logits are not its head's product alone (capped or scaled); "
                "pass a model without that"
            )
        return torch.cat(
            [
                F.cross_entropy(head(some).float(), wanted, reduction="none")
                for some, wanted in zip(hidden[0][0, :-1].split(PIECE), ids[0, 1:].split(PIECE), strict=True)
            ]
        )


def _check(edges: Sequence[int], length: int) -> None:
    rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
    if len(edges) < 2 or edges[0] != 0 or edges[-1] > length or not rising:
        raise ValueError(
            f"edges: got {list(edges)} for length={length}; allowed are two or more that rise from 0 to at most "
            "length: leave edges out for ranges that double"
        )
