"""What attention costs in a whole model: its time over all layers, the time to the first token, the pairs computed.

A pass reads a prompt into a new cache. Times are taken inside it, around each layer's attention, without waiting for
the device; what each layer keeps and computes is looked at in another pass, because looking takes time.
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
Contender = Callable[[Watch | None], AbstractContextManager[Any]]  # inside, the model attends so, and is watched


@dataclass(frozen=True)
class Spread:
    """Of several times in ms: the 20th percentile, the median, the 80th."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> "Spread":
        """Interpolated; of one time or more."""
        return cls(*(round(float(one), 4) for one in np.percentile(ms, (20, 50, 80))))


@dataclass(frozen=True)
class Price:
    """Of one way to attend at one length."""

    attention_ms: Spread  # over all layers, of a prompt
    first_token_ms: Spread
    kept: dict[str, float]  # by layer, part of the queries, in [0, 1], mean over prompts; of watched layers
    density: dict[str, float]  # by layer, part of the dense pairs, in [0, 1], likewise
    ran_dense: dict[str, str]  # by layer: why, in spite of its pipeline


def prices(
    model: Any,
    contenders: Mapping[str, Contender],
    prompts: Sequence[Tensor],
    on_step: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Price], dict[str, str]]:
    """The prices of contenders that take turns on the same prompts, token ids [1, n] each; and who failed, and why.

    Each contender reads each prompt once untimed first and is looked at, then on a GPU the first once more as it is
    timed: what nobody watches may run by other kernels, which are to be compiled as well. Of each prompt's timed passes
    another contender begins. `on_step(name)` is called after each pass that is looked at or timed.
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
        except Exception as error:  # one that breaks must not cost the others a long run
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
    """[1]: the most probable token after a prompt [1, n] read into a new cache."""
    return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)


def error_text(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _looked_at(
    model: Any, contender: Contender, prompts: Sequence[Tensor], on_step: Callable[[], None]
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """By layer: kept, density, and why it ran dense."""
    kept: dict[str, list[float]] = defaultdict(list)
    density: dict[str, list[float]] = defaultdict(list)

    def watch(call: Any) -> None:
        kept[str(call.layer)].append(call.plan.kept(call.problem))
        density[str(call.layer)].append(call.plan.density(call.problem))

    for ids in prompts:
        with contender(watch) as handle:
            first_token(model, ids)
        on_step()
    of = lambda parts: {layer: round(mean(mine), 6) for layer, mine in parts.items()}  # noqa: E731
    return of(kept), of(density), _ran_dense(handle)


def _ran_dense(handle: Any) -> dict[str, str]:
    """By layer: why it did, as far as `sparsify` knows."""
    return {str(layer): reason for layer, reason in getattr(handle, "dense", {}).items()}


class _Clock:
    """Moments on a device: on a GPU, when the work before them is done; marking one waits for nothing."""

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
        """From each odd moment to the even one after it, in all; once the device has come that far."""
        pairs = zip(self._moments[::2], self._moments[1::2], strict=True)
        if self._device.type == "cuda":
            return sum(began.elapsed_time(ended) for began, ended in pairs)
        return sum(ended - began for began, ended in pairs) * 1e3


@contextmanager
def _timed(model: Any) -> Iterator[_Clock]:
    """Inside, the clock is marked before and after each layer's attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # transformers is an optional extra

    name, clock = model.config._attn_implementation, _Clock(model.device)
    attention = ALL_ATTENTION_FUNCTIONS[name]

    def timed(*args: Any, **kwargs: Any) -> Any:
        clock.mark()
        answer = attention(*args, **kwargs)
        clock.mark()
        return answer

    ALL_ATTENTION_FUNCTIONS[name] = timed  # under the same name: another one would get other masks
    try:
        yield clock
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS[name] is not attention:  # it was somebody's own there
            ALL_ATTENTION_FUNCTIONS[name] = attention
