"""Room for a choice whose size only the device knows: the host need not wait for it where there is room for all."""

from torch import Tensor

KNOWN = ("cpu",)  # devices that the host learns a size from at once
# Of 32 heads of 32K tokens. Padding that nobody reads is not written, so beyond it is memory that counts.
BYTES = 2**30
TOKEN, SCORE = 1024, 64  # bytes of a token's q, k, v and answer in one head; of a score, with what is computed of it


def for_all(x: Tensor, entries: int, size: int) -> bool:
    """Return whether all `entries` of `size` bytes get room, not only as many as a tensor on the device of `x` says."""
    return x.device.type not in KNOWN and entries * size <= BYTES
