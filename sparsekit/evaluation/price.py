"""Measures what attention costs in a whole model: time over all layers, time to the first token, pairs computed.

A pass reads a prompt into a new cache. Clocks are read around each layer's attention, without waiting for the device.
Kept queries and density of each layer are computed in a separate pass, because computing them takes time.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..timing import now_ms

Watch = Callable[[Any], None]
Contender = Callable[[Watch | None], AbstractContextManager[Any]]  # a context in which the model attends this way


@dataclass(frozen=True)
class Spread:
    """The 20th percentile, the median and the 80th percentile of times in ms."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> "Spread":
        """Return the spread of one or more times; percentiles are interpolated."""
        return cls(*(round(float(percentile), 4) for percentile in np.percentile(ms, (20, 50, 80))))


@dataclass(frozen=True)
class Price:
    """The cost of one way to attend at one length."""

    attention_ms: Spread  # per prompt, over all layers
    first_token_ms: Spread
    kept: dict[str, float]  # part of the queries by layer, in [0, 1], mean over prompts; only watched layers
    density: dict[str, float]  # part of the dense pairs by layer, in [0, 1], likewise
    ran_dense: dict[str, str]  # by layer, why it ran dense despite its pipeline


def prices(
    model: Any,
    contenders: Mapping[str, Contender],
    prompts: Sequence[Tensor],
    on_step: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Price], dict[str, str]]:
    """Measure the prices of contenders on the same prompts, token ids [1, n] each; also return why any failed.

    First each contender reads every prompt untimed and watched. On a GPU it then reads the first prompt once more
    unwatched, because an unwatched pass may use other kernels, which must be compiled before the timed passes. In the
    timed passes the contenders take turns, and another one begins on each prompt. `on_step(name)` is called after each
    watched or timed pass.
    """
    kept: dict[str, dict[str, float]] = {}
    density: dict[str, dict[str, float]] = {}
    ran_dense: dict[str, dict[str, str]] = {}
    failed: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            kept[name], density[name], ran_dense[name] = _looked_at(model, contender, prompts, lambda: on_step(name))  # noqa: B023
            if model.device.type == "cuda":  # nothing is compiled on a CPU
                with contender(None):
                    first_token(model, prompts[0])
        except Exception as error:  # one broken contender must not end a long run of the others
            failed[name] = error_text(error)
    order = [name for name in contenders if name not in failed]
    attention: dict[str, list[float]] = {name: [] for name in order}
    first: dict[str, list[float]] = {name: [] for name in order}
    for turn, ids in enumerate(prompts):
        begin = turn % max(len(order), 1)
        for name in (*order[begin:], *order[:begin]):
            with contenders[name](None) as handle, _timed(model) as clock:
                began = now_ms(model.device)
                first_token(model, ids)
                first[name].append(now_ms(model.device) - began)
            attention[name].append(clock.ms())
            ran_dense[name] |= _ran_dense(handle)
            on_step(name)
    return {
        name: Price(Spread.of(attention[name]), Spread.of(first[name]), kept[name], density[name], ran_dense[name])
        for name in order
    }, failed


@torch.no_grad()
def first_token(model: Any, ids: Tensor) -> Tensor:
    """Return the most probable token [1] after a prompt [1, n] that is read into a new cache."""
    return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)


def error_text(error: Exception) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _looked_at(
    model: Any, contender: Contender, prompts: Sequence[Tensor], on_step: Callable[[], None]
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Return kept and density of each watched layer, and why layers ran dense."""
    kept: dict[str, list[float]] = defaultdict(list)
    density: dict[str, list[float]] = defaultdict(list)

    def watch(call: Any) -> None:
        kept[str(call.layer)].append(call.plan.kept(call.problem))
        density[str(call.layer)].append(call.plan.density(call.problem))

    for ids in prompts:
        with contender(watch) as handle:
            first_token(model, ids)
        on_step()
    means = lambda parts: {layer: round(mean(values), 6) for layer, values in parts.items()}  # noqa: E731
    return means(kept), means(density), _ran_dense(handle)


def _ran_dense(handle: Any) -> dict[str, str]:
    """Return for each layer that ran dense the reason that `sparsify` gives."""
    return {str(layer): reason for layer, reason in getattr(handle, "dense", {}).items()}


class _Clock:
    """Moments on a device. On a GPU a moment is when the work before it is done; marking one does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[Any] = []

    def mark(self) -> None:
        if self._device.type == "cuda":
            self._moments.append(torch.cuda.Event(enable_timing=True))
            self._moments[-1].record()
        else:
            self._moments.append(time.perf_counter())

    def ms(self) -> float:
        """Return the total ms from each odd moment to the even one after it. The device must have reached the last."""
        pairs = zip(self._moments[::2], self._moments[1::2], strict=True)
        if self._device.type == "cuda":
            return sum(began.elapsed_time(ended) for began, ended in pairs)
        return sum(ended - began for began, ended in pairs) * 1e3


@contextmanager
def _timed(model: Any) -> Iterator[_Clock]:
    """Yield a clock that is marked before and after each layer's attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # transformers is an optional extra

    name, clock = model.config._attn_implementation, _Clock(model.device)
    attention = ALL_ATTENTION_FUNCTIONS[name]

    def timed(*args: Any, **kwargs: Any) -> Any:
        clock.mark()
        answer = attention(*args, **kwargs)
        clock.mark()
        return answer

    ALL_ATTENTION_FUNCTIONS[name] = timed  # under the same name: another name would get other masks
    try:
        yield clock
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS[name] is not attention:  # the user had registered their own
            ALL_ATTENTION_FUNCTIONS[name] = attention
