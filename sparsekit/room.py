"""Room for a choice whose size only the device knows: the host need not wait for it where there is room for all."""

from functools import cache

import torch
from torch import Tensor

KNOWN = ("cpu",)  # devices that the host learns a size from at once
PART = 32  # of the memory of a device: on an H200 that is room for 32 heads of 128K tokens
BYTES = 2**30  # where the memory of a device is not known
TOKEN, SCORE = 1024, 64  # bytes of a token's q, k, v and answer in one head; of a score, with what is computed of it


def for_all(x: Tensor, entries: int, size: int) -> bool:
    """Return whether all `entries` of `size` bytes get room, not only as many as a tensor on the device of `x` says."""
    return x.device.type not in KNOWN and entries * size <= most(x.device)


@cache
def most(device: torch.device) -> int:
    """Return how many bytes there may be room for on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return BYTES
    return torch.cuda.get_device_properties(device).total_memory // PART
