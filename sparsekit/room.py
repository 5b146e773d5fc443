"""Memory for a choice whose size only the device knows: the host need not wait for the size if all entries fit."""

from functools import cache

import torch
from torch import Tensor

KNOWN = ("cpu",)  # devices from which the host gets a size without a wait
PART = 32  # one such part of a device's memory may be used: on an H200 32 heads of 128K tokens fit
BYTES = 2**30  # the part, where the memory of a device is not known
TOKEN, SCORE = 1024, 64  # bytes of a token's q, k, v and output in one head; of a score with its intermediate results


def for_all(x: Tensor, entries: int, size: int) -> bool:
    """Return whether to make room for all `entries` of `size` bytes, so as not to wait for the device of `x`."""
    return x.device.type not in KNOWN and entries * size <= most(x.device)


@cache
def most(device: torch.device) -> int:
    """Return the number of bytes that such a choice may take on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return BYTES
    return torch.cuda.get_device_properties(device).total_memory // PART
