"""Equality and text of dataclasses that hold tensors.

`==` of two tensors is a tensor, which is neither true nor false; and the text of a tensor is pages of numbers, for
which the host waits for the device.
"""

from dataclasses import field, fields
from typing import Any

import torch
from torch import Tensor


def hint() -> Any:
    """Return a field for a known property of the other fields: False by default, and left out of comparisons."""
    return field(default=False, compare=False)


class ByValue:
    """A base for dataclasses with eq=False and repr=False: two are equal if all compared fields are.

    Tensors are equal if their shapes, dtypes, devices and entries are.
    Fields without tensors are compared first: the host waits for a device only if all else is equal, and never for the
    same tensor. The hash does not wait: it is made of the fields without tensors, and of the shape, dtype and device of
    tensors. The text is one line, without a wait: it shows a tensor's dtype and shape, its device if that is no
    CPU, and no field with its default.
    """

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare]  # type: ignore[arg-type]
        if any(type(a) is not type(b) and (_waits(a) or _waits(b)) for a, b in pairs):
            return False
        pairs = [(a, b) for a, b in pairs if a is not b]
        return all(a == b for a, b in pairs if not _waits(a)) and all(_equal(a, b) for a, b in pairs if _waits(a))

    def __hash__(self) -> int:
        return hash((type(self), *(_key(getattr(self, f.name)) for f in fields(self) if f.compare)))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.compare and getattr(self, f.name) is not f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={brief(getattr(self, f.name))}' for f in shown)})"


def brief(x: Any) -> str:
    """Return a value as text; for a tensor that is its dtype, shape and device."""
    if not isinstance(x, Tensor):
        return repr(x)
    where = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}{where}"


def _waits(x: Any) -> bool:
    """Return whether a comparison may wait for a device."""
    return isinstance(x, Tensor | ByValue)


def _key(x: Any) -> Any:
    return (x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return _key(a) == _key(b) and torch.equal(a, b)
    return bool(a == b)
