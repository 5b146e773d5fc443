"""The indices of the largest scores of each row: the search of topk_mask, then each tile writes at a running offset.

A row that fits in registers is searched by one program, and written by several: each counts the entries before its
own share. A few long rows are each shared by many programs: coverage_mask searches them and counts the entries of each
share.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekit.ops.select_tokens import Keep, Scores, common_width
from sparsekit.plan import Tokens

from . import why_not_here
from .coverage_mask import are_shared, before, found
from .topk_mask import AHEAD, bounds, choose, in_rows, keys, places, sizes

SHARE, WARPS = 4096, 8  # entries of a row that a program writes, and its warps


def why_not(scores: Tensor, keep: Tensor) -> str | None:
    return why_not_here(scores)


def select_tokens(scores: Scores, keep: Keep) -> Tokens:
    B, h, n = scores.shape
    width, full = common_width(keep, B * h, n)
    rows, each = in_rows(scores), keep.expand(B, h)
    idx = scores.new_empty(B, h, width, dtype=torch.int32)
    if are_shared(rows):
        limit = each.reshape(-1).to(torch.promote_types(rows.dtype, torch.float32)) - 1
        where, shape, constants = found(rows, limit, False, False)
        _take_share[(len(rows), constants["SHARES"])](*where, idx, *shape, width, **constants)
        return Tokens(idx, n, full)
    given, held = (rows.stride(0), *each.stride(), n), places(rows)
    if held and n > SHARE:
        bits = torch.int64 if rows.dtype == torch.float64 else torch.int32
        keys_of, counts = rows.new_empty(2, B * h, dtype=bits), rows.new_empty(2, B * h, dtype=torch.int32)
        _search[(h, B)](rows, each, keys_of, counts, *given, **held)
        rest = dict(SHARE=SHARE, WIDE=held["WIDE"], num_warps=WARPS)
        _take[(-(-n // SHARE), h, B)](rows, each, keys_of, counts, idx, *given, width, **rest)
    else:
        _select_tokens[(h, B)](rows, each, idx, *given, width, **held or sizes(rows))
    return Tokens(idx, n, full)


@triton.jit
def _search(
    scores, keep, bounds_of, counts, row_stride, keep_b, keep_h, n, N: tl.constexpr, WIDE: tl.constexpr,
    PLACES: tl.constexpr,
):  # fmt: skip
    """Store the bounds of a row's last kept entry, how many within them are kept, and how many there are."""
    row, R = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.num_programs(0) * tl.num_programs(1)
    target = tl.load(keep + tl.program_id(1) * keep_b + tl.program_id(0) * keep_h).to(tl.int32)
    low, high, above, within = bounds(scores + row.to(tl.int64) * row_stride, n, target, N, PLACES, WIDE)
    tl.store(bounds_of + row, low)
    tl.store(bounds_of + R + row, high)
    tl.store(counts + row, target - above)
    tl.store(counts + R + row, within)


@triton.jit
def _take(
    scores, keep, bounds_of, counts, idx, row_stride, keep_b, keep_h, n, width, SHARE: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    part = tl.program_id(0)
    row, R = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1), tl.num_programs(1) * tl.num_programs(2)
    low, high = tl.load(bounds_of + row), tl.load(bounds_of + R + row)
    spare, within = tl.load(counts + row), tl.load(counts + R + row)
    scores += row.to(tl.int64) * row_stride
    idx += row.to(tl.int64) * width
    above, inside = tl.zeros([SHARE], tl.int32), tl.zeros([SHARE], tl.int32)
    for start in tl.range(0, part * SHARE, SHARE, num_stages=AHEAD):
        key, x = keys(scores, start + tl.arange(0, SHARE), n, False, False, WIDE)
        above += (key > high).to(tl.int32)
        inside += ((key >= low) & (key <= high)).to(tl.int32)
    tied = tl.sum(inside, 0)
    filled = tl.sum(above, 0) + tl.minimum(tl.maximum(spare, 0), tied)
    slot = part * SHARE + tl.arange(0, SHARE)
    key, x = keys(scores, slot, n, False, False, WIDE)
    chosen, tied = choose(key, low, high, spare, within, tied)
    chosen = chosen & (slot < n)
    tl.store(idx + filled + tl.cumsum(chosen.to(tl.int32), 0) - 1, slot, mask=chosen)
    kept = tl.load(keep + tl.program_id(2) * keep_b + tl.program_id(1) * keep_h).to(tl.int32)
    tl.store(idx + slot, n, mask=(slot >= tl.minimum(kept, n)) & (slot < width))


@triton.jit
def _select_tokens(
    scores, keep, idx, row_stride, keep_b, keep_h, n, width,
    N: tl.constexpr, WIDE: tl.constexpr, PLACES: tl.constexpr = 0,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    scores += row * row_stride
    idx += row * width
    target = tl.load(keep + tl.program_id(1) * keep_b + tl.program_id(0) * keep_h).to(tl.int32)
    low, high, above, within = bounds(scores, n, target, N, PLACES, WIDE)
    tied, filled = 0, 0
    for start in tl.range(0, n, N // 2, num_stages=AHEAD):
        slot = start + tl.arange(0, N // 2)
        key, x = keys(scores, slot, n, False, False, WIDE)
        chosen, tied = choose(key, low, high, target - above, within, tied)
        chosen = chosen & (slot < n)
        at = filled + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(idx + at, slot, mask=chosen)
        filled += tl.sum(chosen.to(tl.int32), 0)
    for start in range(filled, width, N):
        at = start + tl.arange(0, N)
        tl.store(idx + at, n, mask=at < width)


@triton.jit
def _take_share(
    scores, limit, lows, masses, aboves, equals, idx, row_stride, n, share, width,
    MASS: tl.constexpr, SMALLEST: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low, target = tl.load(lows + row), tl.load(limit + row).to(tl.int32) + 1
    above, filled = before(aboves, part, SHARES)
    within, tied = before(equals, part, SHARES)
    spare = target - above
    filled += tl.minimum(tied, spare)
    for start in range(part * share, tl.minimum(n, (part + 1) * share), N):
        slot = start + tl.arange(0, N)
        key, x = keys(scores + row * row_stride, slot, n, MASS, SMALLEST, WIDE)
        chosen, tied = choose(key, low, low, spare, within, tied)
        chosen = chosen & (slot < n)
        tl.store(idx + row * width + filled + tl.cumsum(chosen.to(tl.int32), 0) - 1, slot, mask=chosen)
        filled += tl.sum(chosen.to(tl.int32), 0)
    for start in range(target + part * N, width, SHARES * N):
        at = start + tl.arange(0, N)
        tl.store(idx + row * width + at, n, mask=at < width)
