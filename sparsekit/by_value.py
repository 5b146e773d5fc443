"""Equality and text of dataclasses that hold tensors.

`==` of two tensors is a tensor, and has no truth of its own; and their text is pages of numbers, for which a device is
waited.
"""

from dataclasses import field, fields
from typing import Any

import torch
from torch import Tensor


def hint() -> Any:
    """Return a field, False by default, for what is known about the others: it does not count in a comparison."""
    return field(default=False, compare=False)


class ByValue:
    """For a dataclass with eq=False and repr=False: equal if all compared fields are.

    Tensors are if their shape, dtype, device and entries are.
    What costs nothing is compared first: a device is waited for only where all else is equal, and never for a tensor
    and itself. The hash goes by what costs nothing, so that equal objects have equal ones: tensors count by shape,
    dtype and device. As text it is one line, with tensors by dtype, shape and, if it is no CPU, device, and without
    what is the default: no device is waited for.
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
    """Return a value as text, a tensor by its dtype, shape and device alone."""
    if not isinstance(x, Tensor):
        return repr(x)
    where = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}{where}"


def _waits(x: Any) -> bool:
    """Whether to compare it may wait for a device."""
    return isinstance(x, Tensor | ByValue)


def _key(x: Any) -> Any:
    return (x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return _key(a) == _key(b) and torch.equal(a, b)
    return bool(a == b)
