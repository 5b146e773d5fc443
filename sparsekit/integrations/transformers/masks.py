"""The mask function, and what can be understood of what transformers asks of it.

transformers calls it once for each kind of layer in a forward pass, and hands its answer, whatever that is, to the
attention function of every such layer. A mask [B, 1, Q, K] would say everything but that it is causal, a window or
padding; so the answer carries the question.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import masking_utils
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from ...plan import Plan, Tokens


def _any_value() -> None:
    """In a pattern: whatever stands there. A function, because only that may stand in some places."""


Sequences = tuple[tuple[int, ...], ...]  # where each row's packed sequences begin, and its end


@dataclass(frozen=True)
class Question:
    """Causal attention whose queries are the last of the filled keys."""

    keys: int  # filled slots of the key buffer; a static cache is longer
    first: int  # position of the first of them: not 0 where a cache has dropped what no window reaches
    window: int | None  # keys a query sees, itself included; None: all
    padding: Plan  # takes padding tokens out; Plan() if there are none
    sequences: Sequences | None  # of packed ones; None: each row is one


class Carrier(Tensor):
    """Stands for a mask, as a tensor of one element a row [B, 1, 1, 1]: transformers hands such a thing on unchanged.

    Moved to a device it stands for the mask there. Whatever else a model does with it is done with the mask itself, in
    SDPA's form.
    """

    asked: dict[str, Any]  # the arguments of the mask function
    source: "Carrier | None"  # where the mask can be made, if this one was moved
    found: dict[Any, Any]  # what was made of it, once a forward pass and not once a layer

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.to and isinstance(args[0], Carrier):
                moved = func(*args, **(kwargs or {}))
                if moved.dtype == torch.bool:
                    return args[0] if moved.device == args[0].device else _moved(args[0], moved.device)
            if func not in _HARMLESS:
                args, kwargs = _whole(args), {name: _whole(x) for name, x in (kwargs or {}).items()}
            return func(*args, **(kwargs or {}))

    def whole(self) -> Bool[Tensor, "B 1 Q K"]:
        """The mask, true where a query sees a key."""
        every = dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        made = self.once("whole", lambda: self._mask(every))
        assert made is not None
        return made

    def for_sdpa(self, sequences: Sequences | None) -> Tensor | None:
        """The mask that SDPA would have got, None where its causal flag says the same; of `sequences` apart, if any."""
        if sequences is None:
            return self.once("sdpa", lambda: self._mask({}))
        return self.once(sequences, lambda: self._apart(sequences))

    def for_eager(self, sequences: Sequences | None, dtype: torch.dtype) -> Tensor:
        """The mask that eager attention adds to its scores."""
        return self.once(("eager", sequences), lambda: added(self._apart(sequences), dtype))

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, the first time of a name."""
        if name not in self.found:
            self.found[name] = make()
        return self.found[name]

    def _mask(self, changed: dict[str, Any]) -> Tensor | None:
        if self.source is None:
            return sdpa_mask(**self.asked | changed)
        made = self.source._mask(changed)  # its mask function may hold tensors of that device
        return made if made is None else made.to(self.device)

    def _apart(self, sequences: Sequences | None) -> Bool[Tensor, "B 1 Q K"]:
        whole = self.whole()
        return whole if sequences is None else whole & _same_sequence(sequences, whole)

    @cached_property
    def question(self) -> Question | str:
        """What is asked; in words, why it is not understood, if it is not. May wait for the device, once a pass."""
        return understand(**self.asked)


_HARMLESS = {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "dtype", "is_cuda", "requires_grad")}
_HARMLESS |= {Tensor.size, Tensor.dim, Tensor.stride, Tensor.contiguous, Tensor.is_contiguous}


def _whole(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(map(_whole, x))
    return x.whole() if isinstance(x, Carrier) else x


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of true and false as one that is added to scores."""
    least = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros_like(least), least)


def mask(**asked: Any) -> Tensor | None:
    """Registered with transformers, whose `sdpa_mask` lists the arguments. A decode step gets SDPA's mask."""
    asked = _DEFAULTS | asked
    if torch.is_tensor(offset := asked["q_offset"]):
        asked["q_offset"] = offset.clone()  # a static cache counts on in this very tensor before a layer attends
    return sdpa_mask(**asked) if asked["q_length"] == 1 else _carrier(asked)


@torch.compiler.disable(reason="sparsekit: a sparse prefill is no single graph; compile without fullgraph=True")
def _carrier(asked: dict[str, Any]) -> Carrier:
    empty = torch.empty(asked["batch_size"], 1, 1, 1, dtype=torch.bool, device=asked["device"])
    carrier = empty.as_subclass(Carrier)
    carrier.asked, carrier.source, carrier.found = asked, None, {}
    return carrier


def _moved(carrier: Carrier, device: torch.device) -> Carrier:
    padding = carrier.asked["attention_mask"]
    moved = _carrier(
        carrier.asked | dict(device=device, attention_mask=None if padding is None else padding.to(device))
    )
    moved.source = carrier
    return moved


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(sdpa_mask).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def understand(
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    mask_function: Callable,
    attention_mask: Tensor | None,
    **_: Any,
) -> Question | str:
    """The question as one about causal attention, or why it is none."""
    sequences = None
    packed = _match(mask_function, _packed())
    if packed is not None:
        ids, mask_function = (next(x for x in packed if kind(x)) for kind in (torch.is_tensor, callable))
        sequences = _beginnings(ids)
    if mask_function is causal_mask_function:
        window = None
    elif (found := _match(mask_function, sliding_window_causal_mask_function(_any_value))) is not None:  # type: ignore[arg-type]
        (window,) = found
    else:
        return "its mask is neither causal nor a causal sliding window"
    keys = int(q_offset) - kv_offset + q_length
    if not q_length <= keys <= kv_length:
        return "its queries are not the last of the keys that its cache has filled"
    return Question(keys, kv_offset, window, _padding(attention_mask, q_length, kv_offset, keys), sequences)


def _padding(real: Tensor | None, queries: int, first: int, keys: int) -> Plan:
    """The plan that keeps real tokens; `real` [B, n] tells them from position 0 on, and tokens beyond are padding."""
    if real is None:
        return Plan()
    real = torch.nn.functional.pad(real, (0, max(0, first + keys - real.shape[1])))[:, first : first + keys].bool()
    if real.all():
        return Plan()
    kept = Tokens.of(real[:, None])
    return Plan(kept if queries == keys else Tokens.of(real[:, None, -queries:]), kept)


def packed_by(length: int, cu_seq_lens: Tensor | None, seq_idx: Tensor | None) -> Sequences | None:
    """Where packed sequences begin, by what a caller says of them: bounds [N + 1] of a row, or a number a token [B, L].

    None if the caller says nothing. Raises ValueError if it is not about the `length` tokens of a call.
    """
    if cu_seq_lens is not None:
        bounds = cu_seq_lens.tolist()
        if bounds[0] != 0 or bounds[-1] > length or any(a > b for a, b in pairwise(bounds)):
            raise ValueError(
                f"cu_seq_lens_q: got {bounds} for {length} tokens; allowed are ascending bounds from 0 to at most "
                "that: pass those of this call"
            )
        return (tuple(sorted({*bounds, length})),)
    if seq_idx is not None and seq_idx.shape[-1] != length:
        raise ValueError(
            f"seq_idx: got {seq_idx.shape[-1]} numbers for {length} tokens; allowed is one a token: pass those of this "
            "call"
        )
    return None if seq_idx is None else _beginnings(seq_idx)


def _beginnings(ids: Tensor) -> Sequences:
    """[B, L] -> for each row where its runs of equal numbers begin, and L."""
    changes = (ids.diff(dim=-1) != 0).tolist()
    return tuple((0, *(i for i, new in enumerate(row, 1) if new), ids.shape[1]) for row in changes)


def _same_sequence(sequences: Sequences, mask: Tensor) -> Tensor:
    """[B, 1, Q, K]: whether a query and a key are of one sequence."""
    slot = torch.arange(mask.shape[-1], device=mask.device)
    ids = [torch.searchsorted(torch.tensor(row, device=mask.device), slot, right=True) for row in sequences]
    of = torch.stack(ids)[:, None]
    return of[..., -mask.shape[2] :, None] == of[..., None, :]


def _packed() -> Callable:
    """The mask function of packed sequences with anything in it; since 5.17 with positions of its own."""
    if hasattr(masking_utils, "packed_sequence_compatibility_function"):
        return masking_utils.packed_sequence_compatibility_function(*[_any_value] * 3)  # type: ignore[arg-type]
    return masking_utils.and_masks(_any_value, masking_utils.packed_sequence_mask_function(_any_value))  # type: ignore[arg-type]


def _match(found: Any, pattern: Any) -> list[Any] | None:
    """What stands at each `_any_value` of a pattern in a mask function built like it; None if that is built otherwise.

    transformers makes mask functions of closures: two are built alike if their code is the same and what they close
    over is alike.
    """
    try:
        return list(_matched(found, pattern))
    except _Unlike:
        return None


class _Unlike(Exception):
    pass


def _matched(found: Any, pattern: Any) -> Iterator[Any]:
    if pattern is _any_value:
        yield found
    elif inspect.isfunction(pattern) and inspect.isfunction(found) and found.__code__ is pattern.__code__:
        for a, b in zip(found.__closure__ or (), pattern.__closure__ or (), strict=True):
            yield from _matched(a.cell_contents, b.cell_contents)
    elif isinstance(pattern, tuple) and isinstance(found, tuple) and len(found) == len(pattern):
        for a, b in zip(found, pattern, strict=True):
            yield from _matched(a, b)
    elif found is not pattern:
        raise _Unlike
