"""The mask function that transformers calls: it keeps the arguments of its call, so that they can become Problems.

transformers calls it once for each kind of layer in a forward pass, and passes its answer, whatever that is, to the
attention function of every such layer. A mask [B, 1, Q, K] would not say whether it is causal, has a window or hides
padding. So the answer is a `Carrier`: a tensor of the mask's shape that holds the arguments and makes the mask if a
model needs it. `understand` turns the arguments into a `Question`.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import masking_utils
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from ...plan import Plan, Tokens
from ...problem import is_abstract
from .interface import stock


def _any_value() -> None:
    """Stand for any value in a pattern. It is a function, because some places of a pattern must hold one."""


Sequences = tuple[tuple[int, ...], ...]  # for each row the first slots of its packed sequences, then the row's length


@dataclass(frozen=True)
class Question:
    """The arguments of a mask as causal attention whose queries are the last of the filled keys."""

    keys: int  # filled slots of the key buffer; a static cache is longer
    first: int  # the first key's slot in the sequence; above 0 if a cache has dropped keys that no window reaches
    window: int | None  # the sliding window: keys a query sees, itself included; None: all
    real: Bool[Tensor, "B first_and_keys"] | None  # false where a slot of the sequence is padding; None: no padding
    ids: Int[Tensor, "B keys"] | None = None  # the number of each token's packed sequence; None: each row is one

    @cached_property
    def sequences(self) -> Sequences | None:
        """The first slots of packed sequences, or None. Waits for the device once per forward pass."""
        return None if self.ids is None else beginnings(self.ids)

    @cached_property
    def padded(self) -> bool:
        """True if some slot is padding. Waits for the device once per forward pass."""
        return self.real is not None and not bool(self.real.all())

    def rows(self, queries: int, least: int) -> tuple["Rows", ...]:
        """Group the rows of the batch so that each row runs as it would alone.

        Rows whose sliding window covers all their keys form groups without a window. Rows of at least `least` keys and
        shorter ones are in different groups, because the length decides whether a pipeline's stages run.
        """
        if not self.padded:
            return (Rows(None, Plan(), None, self.window),)
        assert self.real is not None
        slot = torch.arange(self.real.shape[1], device=self.real.device)
        begin = torch.where(self.real, slot, len(slot)).amin(-1)
        end = torch.where(self.real, slot + 1, 0).amax(-1)
        held = self.real[:, self.first :].sum(-1)
        kinds: dict[tuple[bool, bool], list[int]] = {}
        empty = []
        for b, (start, stop, n) in enumerate(torch.stack([begin, end, held], -1).tolist()):
            if n:
                covered = self.window is not None and stop - max(start, self.first) <= self.window
                kinds.setdefault((covered, n >= least), []).append(b)
            else:
                empty.append(b)
        next(iter(kinds.values()), []).extend(empty)  # any group will do: rows without tokens compute nothing
        if not kinds:
            kinds[False, False] = empty
        return tuple(self._group(sorted(group), covered, begin, queries) for (covered, _), group in kinds.items())

    def _group(self, members: list[int], covered: bool, begin: Tensor, queries: int) -> "Rows":
        assert self.real is not None
        every = len(members) == self.real.shape[0]
        index = None if every else torch.tensor(members, device=self.real.device)
        real, begin = (x if index is None else x[index] for x in (self.real, begin))
        window = None if covered else self.window
        slot = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        place = real.cumsum(-1) - 1 if window is None else slot - begin[:, None]
        held = real[:, self.first :]
        kept = Tokens.of(held[:, None])
        padding = Plan(kept if queries == self.keys else Tokens.of(held[:, None, -queries:]), kept)
        return Rows(index, padding, place[:, None, self.first :].int(), window)


@dataclass(frozen=True)
class Rows:
    """A group of rows of a batch that are alike."""

    index: Int[Tensor, " rows"] | None  # their numbers in the batch; None: all rows
    padding: Plan  # a plan that drops their padding; Plan() if there is none
    place: Int[Tensor, "rows 1 keys"] | None  # the position of each key in its own sequence, int32; None: its slot
    window: int | None  # the sliding window: keys a query sees, itself included; None: all


class Carrier(Tensor):
    """A stand-in for a mask, with its shape [B, 1, Q, K] and dtype but no memory. transformers passes it on unchanged.

    Moved to a device it stands for the mask there; cut to its last rows it stands for the mask of the last queries. For
    any other operation the mask itself is made, in the form that the model's own implementation gets: for SDPA true
    where a query sees a key, for eager attention numbers that are added to scores.
    """

    arguments: dict[str, Any]  # of the mask function
    source: "Carrier | None"  # if this one was moved, the carrier on the device where the mask can be made
    found: dict[Any, Any]  # results that all layers of a forward pass share, by name

    @staticmethod
    def __new__(cls, arguments: dict[str, Any], source: "Carrier | None" = None) -> "Carrier":
        dtype = torch.bool if _form(arguments) == "sdpa" else arguments["dtype"]
        shape = arguments["batch_size"], 1, arguments["q_length"], arguments["kv_length"]
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device(arguments["device"]))
        made.arguments, made.source, made.found = arguments, source, {}
        return made

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.to and isinstance(args[0], Carrier):
                dtype, device = _target(args[0], *args[1:], **(kwargs or {}))
                if dtype == args[0].dtype:
                    return args[0] if device == args[0].device else _moved(args[0], device)
            if func is Tensor.__getitem__ and isinstance(args[0], Carrier):
                if (last := _last_rows(args[1], args[0].shape[2])) is not None:
                    return _cut(args[0], last)
            if func is Tensor.contiguous:
                return args[0]
            if func not in _HARMLESS:
                args, kwargs = _whole(args), {name: _whole(x) for name, x in (kwargs or {}).items()}
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_whole(args), **{name: _whole(x) for name, x in (kwargs or {}).items()})

    def whole(self) -> Tensor:
        """Return the mask [B, 1, Q, K] in the form that the model expects."""
        return self.seen() if self.dtype == torch.bool else self.for_eager(None, self.dtype)

    def seen(self) -> Bool[Tensor, "B 1 Q K"]:
        """Return the mask, true where a query sees a key."""
        every = dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        made = self.once("seen", lambda: self._mask(every))
        assert made is not None
        return made

    def for_sdpa(self, sequences: Sequences | None) -> Tensor | None:
        """Return the mask that SDPA gets without sparsekit, or None if its causal flag is enough.

        `sequences` are packed sequences, which then do not see each other.
        """
        if sequences is None:
            return self.once("sdpa", lambda: self._mask({}))
        return self.once(sequences, lambda: self._apart(sequences))

    def for_eager(self, sequences: Sequences | None, dtype: torch.dtype) -> Tensor:
        """Return the mask that eager attention adds to its scores."""
        return self.once(("eager", sequences, dtype), lambda: added(self._apart(sequences), dtype))

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called the first time that a name occurs."""
        if name not in self.found:
            self.found[name] = make()
        return self.found[name]

    def _mask(self, changed: dict[str, Any]) -> Tensor | None:
        if self.source is None:
            return sdpa_mask(**self.arguments | changed)
        made = self.source._mask(changed)  # its mask function may hold tensors of that device
        return made if made is None else made.to(self.device)

    def _apart(self, sequences: Sequences | None) -> Bool[Tensor, "B 1 Q K"]:
        return self.seen() if sequences is None else self.seen() & _same_sequence(sequences, self.seen())

    @cached_property
    def question(self) -> Question | str:
        """The Question, or in words why there is none. May wait for the device once per forward pass."""
        return understand(**self.arguments)


_HARMLESS = {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "dtype", "is_cuda", "requires_grad", "_base")
}
_HARMLESS |= {Tensor.size, Tensor.dim, Tensor.stride, Tensor.is_contiguous}


def _form(arguments: dict[str, Any]) -> str:
    return stock(arguments["config"]) if "config" in arguments else "sdpa"


def _target(carrier: Carrier, *args: Any, **kwargs: Any) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device that a call of Tensor.to requests."""
    dtype, device = carrier.dtype, carrier.device
    for x in (*args, *kwargs.values()):
        if isinstance(x, torch.dtype):
            dtype = x
        elif isinstance(x, str | torch.device):
            device = torch.empty(0, device=x).device  # "cuda" becomes the current one, as "cuda:0"
        elif isinstance(x, Tensor):
            dtype, device = x.dtype, x.device
    return dtype, device


def _last_rows(index: Any, rows: int) -> int | None:
    """Return n for an index that takes exactly the last n rows, as [:, :, -n:, :] does; else None."""
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [part for part in parts if part is Ellipsis]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (5 - len(parts)), *parts[at + 1 :])
    parts = (*parts, *[slice(None)] * (4 - len(parts)))
    if len(parts) != 4 or not all(isinstance(part, slice) for part in parts):
        return None
    if any(part != slice(None) for i, part in enumerate(parts) if i != 2):
        return None
    begin, end, step = parts[2].indices(rows)
    return rows - begin if (end, step) == (rows, 1) and begin < rows else None


def _cut(carrier: Carrier, rows: int) -> Carrier:
    """Return the carrier for the last `rows` queries."""
    before = carrier.shape[2] - rows
    if not before:
        return carrier
    source = carrier.source and _cut(carrier.source, rows)
    offset = carrier.arguments["q_offset"] + before
    return _carrier(carrier.arguments | dict(q_length=rows, q_offset=offset), source)


def _whole(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(map(_whole, x))
    return x.whole() if isinstance(x, Carrier) else x


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to one that is added to scores: 0 where it is true, the least number of `dtype` else."""
    least = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros_like(least), least)


def mask(**arguments: Any) -> Tensor | None:
    """Return a Carrier of the arguments, those of transformers' `sdpa_mask`, or for one query the model's own mask."""
    if arguments["q_length"] == 1:
        return sdpa_mask(**arguments) if _form(arguments) == "sdpa" else eager_mask(**arguments)
    arguments = _DEFAULTS | arguments
    if torch.is_tensor(offset := arguments["q_offset"]):
        arguments["q_offset"] = offset.clone()  # a static cache changes this tensor in place before a layer attends
    return _carrier(arguments)


@torch.compiler.disable(reason="sparsekit: a sparse prefill is no single graph; compile without fullgraph=True")
def _carrier(arguments: dict[str, Any], source: Carrier | None = None) -> Carrier:
    return Carrier(arguments, source)


def _moved(carrier: Carrier, device: torch.device) -> Carrier:
    padding = carrier.arguments["attention_mask"]
    on_device = dict(device=device, attention_mask=None if padding is None else padding.to(device))
    return _carrier(carrier.arguments | on_device, carrier)


_DEFAULTS: dict[str, Any] = dict(  # of the arguments that are read here; others may be deprecated ones
    q_offset=0, kv_offset=0, mask_function=causal_mask_function, attention_mask=None, dtype=torch.float32, device="cpu"
)


def understand(
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    mask_function: Callable,
    attention_mask: Tensor | None,
    **_: Any,
) -> Question | str:
    """Return the arguments of a mask as a Question, or in words why they are not one about causal attention."""
    ids, plain = None, mask_function is causal_mask_function
    packed = None if plain else _match(mask_function, _packed())
    if packed is not None:
        ids, mask_function = (next(x for x in packed if kind(x)) for kind in (torch.is_tensor, callable))
    if mask_function is causal_mask_function:
        window = None
    elif (values := _match(mask_function, sliding_window_causal_mask_function(_any_value))) is not None:  # type: ignore[arg-type]
        (window,) = values
    else:
        return "its mask is neither causal nor a causal sliding window"
    if torch.is_tensor(q_offset) and is_traced(q_offset):
        return "the number of keys in its cache is not known while it is traced"
    keys = int(q_offset) - kv_offset + q_length
    if not q_length <= keys <= kv_length:
        return "its queries are not the last of the keys that its cache has filled"
    return Question(keys, kv_offset, window, _real(attention_mask, kv_offset + keys), ids)


def _real(attention_mask: Tensor | None, slots: int) -> Bool[Tensor, "B slots"] | None:
    """Return which of the first slots of each row hold a token, by a mask [B, n]; slots from n on are padding."""
    if attention_mask is None:
        return None
    return torch.nn.functional.pad(attention_mask, (0, max(0, slots - attention_mask.shape[1])))[:, :slots].bool()


def is_traced(x: Tensor) -> bool:
    """Return whether a tensor has a shape but no values: on the meta device, fake, or while a model is exported."""
    return is_abstract(x) or _is_exporting()


@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    """Return torch.compiler.is_exporting(), read outside the graph: torch 2.11 compiles it as always true."""
    return torch.compiler.is_exporting()


def packed_by(
    rows: int, queries: int, keys: int, cu_seq_lens: Tensor | None, seq_idx: Tensor | None
) -> Sequences | None:
    """Return the packed sequences that a caller describes, or None if both descriptions are None.

    `cu_seq_lens` [N + 1] are bounds in one row; `seq_idx` [B, L] is the number of each token's sequence. Raises
    ValueError if they do not fit the tokens of a call without a cache.
    """
    for name, given in (("cu_seq_lens_q", cu_seq_lens), ("seq_idx", seq_idx)):
        if given is not None and is_traced(given):
            raise ValueError(
                f"{name}: got it in a model that is traced, where its values are not known; allowed is None there: "
                "trace the model without packed sequences"
            )
        if given is not None and queries != keys:
            raise ValueError(
                f"{name}: got it for {queries} tokens over a cache of {keys - queries}; allowed are packed sequences "
                "without a cache: pass all their tokens in one call"
            )
    if cu_seq_lens is not None:
        bounds = cu_seq_lens.tolist()
        if rows != 1:
            raise ValueError(
                f"cu_seq_lens_q: got bounds for a batch of {rows} rows; allowed is one row that holds all packed "
                "sequences: concatenate the rows"
            )
        if bounds[0] != 0 or bounds[-1] > queries or any(a > b for a, b in pairwise(bounds)):
            raise ValueError(
                f"cu_seq_lens_q: got {bounds} for {queries} tokens; allowed are ascending bounds from 0 to at most "
                "that: pass those of this call"
            )
        return (tuple(sorted({*bounds, queries})),)
    if seq_idx is not None and seq_idx.shape[-1] != queries:
        raise ValueError(
            f"seq_idx: got {seq_idx.shape[-1]} numbers for {queries} tokens; allowed is one a token: pass those of "
            "this call"
        )
    return None if seq_idx is None else beginnings(seq_idx)


def beginnings(ids: Tensor) -> Sequences:
    """Return for each row of [B, L] the first slots of its runs of equal numbers, then L."""
    changes = (ids.diff(dim=-1) != 0).tolist()
    return tuple((0, *(i for i, new in enumerate(row, 1) if new), ids.shape[1]) for row in changes)


def _same_sequence(sequences: Sequences, mask: Tensor) -> Tensor:
    """Return [B, 1, Q, K], true where a query and a key are in the same sequence."""
    slot = torch.arange(mask.shape[-1], device=mask.device)
    ids = [torch.searchsorted(torch.tensor(row, device=mask.device), slot, right=True) for row in sequences]
    number = torch.stack(ids)[:, None]
    return number[..., -mask.shape[2] :, None] == number[..., None, :]


def _packed() -> Callable:
    """Return a pattern for the mask function of packed sequences. After transformers 5.17 it also holds positions."""
    if hasattr(masking_utils, "packed_sequence_compatibility_function"):
        return masking_utils.packed_sequence_compatibility_function(*[_any_value] * 3)  # type: ignore[arg-type]
    return masking_utils.and_masks(_any_value, masking_utils.packed_sequence_mask_function(_any_value))  # type: ignore[arg-type]


def _match(function: Any, pattern: Any) -> list[Any] | None:
    """Return the values in a mask function at each `_any_value` of a pattern, or None if they are built differently.

    transformers' mask functions are closures. Two are built alike if their code is the same and the values that they
    close over are built alike.
    """
    try:
        return list(_matched(function, pattern))
    except _Unlike:
        return None


class _Unlike(Exception):
    """A mask function that is not built like the pattern."""


def _matched(value: Any, pattern: Any) -> Iterator[Any]:
    """Yield the values at each `_any_value` of a pattern. Raises _Unlike if a value is not built like the pattern."""
    if pattern is _any_value:
        yield value
    elif inspect.isfunction(pattern) and inspect.isfunction(value) and value.__code__ is pattern.__code__:
        for a, b in zip(value.__closure__ or (), pattern.__closure__ or (), strict=True):
            yield from _matched(a.cell_contents, b.cell_contents)
    elif isinstance(pattern, tuple) and isinstance(value, tuple) and len(value) == len(pattern):
        for a, b in zip(value, pattern, strict=True):
            yield from _matched(a, b)
    elif value is not pattern:
        raise _Unlike
