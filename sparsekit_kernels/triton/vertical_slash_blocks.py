"""Block lists of a vertical-slash pattern, without the [B, H, I, J] grid: one program per list reads the key blocks.

It reads them twice, to count and to write. Small lists are as wide as the grid; for larger ones the host waits for the
length of the longest. Each reading takes 3 bytes per pair of blocks, all from L2.
"""

import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.vertical_slash_blocks import OfKeys, OfPairs, OfQueries
from sparsekit.plan import Blocks

from . import why_not_here

SMALL = 2**26  # entries of all lists together, 256 MiB: up to this size the host does not wait


def why_not(
    verticals: Tensor, slashes: Tensor, first: Tensor, last: Tensor, extra: Tensor | None, size: tuple[int, int]
) -> str | None:
    return why_not_here(verticals)


def vertical_slash_blocks(
    verticals: OfKeys,
    slashes: OfKeys,
    first: OfQueries,
    last: OfQueries,
    extra: OfPairs | None,
    size: tuple[int, int],
) -> Blocks:
    (B, H, J), I = verticals.shape, first.shape[-1]
    verticals, slashes = verticals.contiguous(), slashes.contiguous()
    first, last = first.int().contiguous(), last.int().contiguous()
    pattern = (verticals, slashes, first, last, verticals if extra is None else extra.contiguous())
    constants = dict(EXTRA=extra is not None, N=min(max(triton.next_power_of_2(J), 32), 1024))
    counts = first.new_empty(B, H, I)
    _count[(I, B * H)](*pattern, counts, J, **constants)
    width = J if B * H * I * J <= SMALL else max(int(counts.max()), 1)  # the one host synchronisation of a choice
    indices = first.new_empty(B, H, I, width)
    _write[(I, B * H)](*pattern, indices, J, width, **constants)
    return Blocks(counts, indices, size, J)


@triton.jit
def _kept(verticals, slashes, extra, line, first, last, j, J, EXTRA: tl.constexpr):
    """Return whether the key blocks j are in the list of a query block."""
    head = (line // tl.num_programs(0)) * J
    open_ = j <= last
    kept = tl.load(verticals + head + j, mask=open_, other=0)
    kept = kept | tl.load(slashes + head + first - j, mask=j <= first, other=0)
    kept = kept | tl.load(slashes + head + last - j, mask=open_, other=0)
    if EXTRA:
        kept = kept | tl.load(extra + line * J + j, mask=open_, other=0)
    return (kept != 0) & open_


@triton.jit
def _count(verticals, slashes, first, last, extra, counts, J, EXTRA: tl.constexpr, N: tl.constexpr):
    line = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    near, far = tl.load(first + line), tl.load(last + line)
    total = tl.zeros([N], tl.int32)
    for start in range(0, far + 1, N):
        total += _kept(verticals, slashes, extra, line, near, far, start + tl.arange(0, N), J, EXTRA).to(tl.int32)
    tl.store(counts + line, tl.sum(total, 0))


@triton.jit
def _write(verticals, slashes, first, last, extra, indices, J, width, EXTRA: tl.constexpr, N: tl.constexpr):
    line = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    near, far = tl.load(first + line), tl.load(last + line)
    indices += line * width
    filled = 0
    for start in range(0, far + 1, N):
        j = start + tl.arange(0, N)
        kept = _kept(verticals, slashes, extra, line, near, far, j, J, EXTRA)
        tl.store(indices + filled + tl.cumsum(kept.to(tl.int32), 0) - 1, j, mask=kept)
        filled += tl.sum(kept.to(tl.int32), 0)
    for start in range(filled, width, N):
        at = start + tl.arange(0, N)
        tl.store(indices + at, J, mask=at < width)
