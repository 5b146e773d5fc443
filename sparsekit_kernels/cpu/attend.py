"""Attention over a plan: dense, compressed, indexed and block-sparse, as calls of torch's fused attention.

Positions ascend, so a query sees a prefix of the keys. The length of the prefix (`Problem.reach`) is all that
causality comes to. Rows whose prefix grows by one key per row are computed as a full rectangle and a causal square.
Other rows are cut into short runs, each a rectangle and a masked remainder. A sliding window removes the first keys
of the prefix.
"""

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsekit.plan import Blocks, Plan
from sparsekit.problem import PAD, Output, Problem, to_heads

from . import fused, head_slices, masked

RUN = 128  # rows that share a rectangle if the prefixes are irregular
GATHERED = 4096  # keys gathered at a time: 1 MiB at 64 floats per key, to fit the second-level cache
MOST = 2**24  # masked pairs at a time: 64 MiB in float32


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None


def attend(problem: Problem, plan: Plan) -> Output:
    p = problem
    (B, H, Q, _), Dv = p.q.shape, p.v.shape[3]
    wide = torch.promote_types(p.q.dtype, torch.float32)
    out = Output(p.q.new_zeros(B, H, Q, Dv), p.q.new_full((B, H, Q), float("-inf"), dtype=wide))
    if plan.queries or plan.keys:
        _indexed(p, plan, out)
    elif plan.blocks:
        _blocked(p, plan.blocks, out)
    elif p.sliding_window is not None:
        _windowed(p, out)
    else:
        _dense(p, out)
    return out


def kernel(problem: Problem, plan: Plan) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return dense attention as a function of q, k, v of these shapes without padding, if one fused call computes it.

    Otherwise return None.
    """
    p, square = problem, problem.queries_last and problem.q.shape[2] == problem.k.shape[2]
    if plan != Plan() or not (p.q.is_cpu and p.full) or p.sliding_window is not None or (p.causal and not square):
        return None
    return partial(_output, p.scale, p.causal)


def _output(scale: float, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused(q, k, v, scale, causal=causal).o


def _indexed(p: Problem, plan: Plan, out: Output) -> None:
    """Compress and decompress one head at a time, so that q, k, v are never copied as a whole."""
    H = p.q.shape[1]
    for h in range(H):
        mine = plan.head(h, H)
        tokens = Plan(mine.queries, mine.keys)
        done = tokens.decompress(attend(tokens.compress(p.head(h)), Plan(blocks=mine.blocks)))
        out.o[:, h : h + 1], out.lse[:, h : h + 1] = done.o, done.lse


def _dense(p: Problem, out: Output) -> None:
    reach = p.reach()
    B, h, Q = reach.shape
    first = (reach > 0).int().argmax(-1)  # the rows that see a key are one range, [first, end)
    end = first + (reach > 0).sum(-1)
    row = torch.arange(Q, device=reach.device)
    start = reach.gather(-1, first[..., None])  # number of keys that row `first` sees
    inside = (row >= first[..., None]) & (row < end[..., None])
    steps = ((reach == start + row - first[..., None]) | ~inside).all(-1)
    flat = ((reach == start) | ~inside).all(-1)
    shape = torch.stack([first, end, start[..., 0], steps, flat], -1)
    if (steps | flat).all() and (shape == shape[:1, :1]).all():
        parts = [(slice(None), slice(None), slice(None))]  # all heads are alike: one call for all
    else:
        parts = [(slice(b, b + 1), *head_slices(p, x, h)) for b in range(B) for x in range(h)]
    for at, (b, heads, groups) in enumerate(parts):
        f, e, n, stairs, rectangle = shape.flatten(0, 1)[at].tolist()
        if f == e:
            continue
        q, k, v = p.q[b, heads, f:e], p.k[b, groups], p.v[b, groups]
        if rectangle:
            done = fused(q, k[:, :, :n], v[:, :, :n], p.scale)
        elif stairs:
            m = n - 1  # number of keys before the square
            done = fused(q, k[:, :, m : m + e - f], v[:, :, m : m + e - f], p.scale, causal=True)
            if m:
                done = done.merge(fused(q, k[:, :, :m], v[:, :, :m], p.scale))
        else:
            seen = reach.flatten(0, 1)[at, f:e]
            done = _irregular(q, k, v, p.scale, torch.zeros_like(seen), seen)
        out.o[b, heads, f:e], out.lse[b, heads, f:e] = done.o, done.lse


def _windowed(p: Problem, out: Output) -> None:
    """Compute attention under a sliding window in runs of rows, each over the few slots that its rows see."""
    start, reach = p.start(), p.reach()
    h = max(start.shape[1], reach.shape[1])
    start, reach = to_heads(start, h), to_heads(reach, h)
    for b in range(p.q.shape[0]):
        for x in range(h):
            heads, groups = head_slices(p, x, h)
            q, k, v = p.q[b : b + 1, heads], p.k[b : b + 1, groups], p.v[b : b + 1, groups]
            done = _irregular(q, k, v, p.scale, start[b, x], reach[b, x])
            out.o[b, heads], out.lse[b, heads] = done.o[0], done.lse[0]


def _irregular(q: Tensor, k: Tensor, v: Tensor, scale: float, low: Tensor, high: Tensor) -> Output:
    """Compute attention of rows that see the slots [low, high), both ascending, in runs of rows."""
    runs = [slice(i, i + RUN) for i in range(0, q.shape[2], RUN)]
    parts = [between(q[:, :, rows], k, v, scale, low[rows], high[rows]) for rows in runs]
    return Output(torch.cat([part.o for part in parts], 2), torch.cat([part.lse for part in parts], 2))


def between(q: Tensor, k: Tensor, v: Tensor, scale: float, low: Tensor, high: Tensor) -> Output:
    """Compute attention of a few rows [B, H, M, D] that see the slots [low, high) [M].

    The slots that all rows see are one call without a mask; the others are masked.
    """
    sees = high > low
    if not sees.any():
        lse = q.new_full(q.shape[:3], float("-inf"), dtype=torch.promote_types(q.dtype, torch.float32))
        return Output(q.new_zeros(*q.shape[:3], v.shape[3]), lse)
    (first, inner), (outer, end) = (y[sees].aminmax() for y in (low, high))
    edges, parts = [(int(first), int(end))], []
    if inner < outer:
        edges = [(int(first), int(inner)), (int(outer), int(end))]
        done = fused(q, k[:, :, inner:outer], v[:, :, inner:outer], scale)
        parts = [Output(done.o.masked_fill(~sees[:, None], 0.0), done.lse.masked_fill(~sees, float("-inf")))]
    step = max(1, MOST // len(low))
    for left, right in edges:
        for at in range(left, right, step):
            slot = torch.arange(at, min(at + step, right), device=q.device)
            visible = (slot >= low[:, None]) & (slot < high[:, None])
            keys, values = (y[:, :, at : at + len(slot)] for y in (k, v))
            parts.append(masked(q, keys, values, scale, visible.expand(q.shape[0], 1, -1, -1)))
    return reduce(Output.merge, parts)


def _blocked(p: Problem, blocks: Blocks, out: Output) -> None:
    """Compute block-sparse attention head by head.

    First come the key blocks that all rows of a query block see whole, then those that some rows see in part.
    """
    (m, n), (B, _, Q, _) = blocks.size, p.q.shape
    start, reach = p.start(), p.reach()
    h = max(start.shape[1], reach.shape[1], blocks.indices.shape[1])
    start, reach, lists = to_heads(start, h), to_heads(reach, h), to_heads(blocks.indices, h)
    first, rows = (pad(x, (0, -Q % m)).unflatten(2, (-1, m)) for x in (start, reach))  # [B, h, I, m]
    whole, part = (to_heads(x, h) for x in blocks.seen(p.reach()))  # [B, h, I]
    if p.sliding_window is not None:
        lists, whole, part = _cropped(lists, whole, part, first, rows, n)
    k, v = (_padded(x, n) for x in (p.k, p.v))  # [B, G, J, n, D]
    for b in range(B):
        for x in range(h):
            heads, groups = head_slices(p, x, h)
            q, o, lse = _padded(p.q[b, heads], m), _padded(out.o[b, heads], m), _padded(out.lse[b, heads], m, -1)
            choice = lists[b, x], whole[b, x], part[b, x]
            _whole_blocks(q, k[b, groups], v[b, groups], p.scale, *choice[:2], Output(o, lse))
            _part_blocks(q, k[b, groups], v[b, groups], p.scale, *choice, first[b, x], rows[b, x], Output(o, lse))
            if (blind := rows[b, x] == 0).any():
                o.masked_fill_(blind[..., None], 0.0)
                lse.masked_fill_(blind, float("-inf"))
            if Q % m:  # otherwise `o` and `lse` are views of `out`
                out.o[b, heads], out.lse[b, heads] = o.flatten(1, 2)[:, :Q], lse.flatten(1, 2)[:, :Q]


def _cropped(
    lists: Tensor, whole: Tensor, part: Tensor, first: Tensor, rows: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lists without the blocks before the window, and the numbers of blocks that rows see whole and in part.

    Blocks that all rows see whole still come first. Each row sees the slots from `first` to `rows` [B, h, I, m].
    """
    place = torch.arange(lists.shape[-1], device=lists.device)
    blind = rows == 0
    least, most = first.masked_fill(blind, PAD).amin(-1, keepdim=True), first.amax(-1, keepdim=True)
    some = (place < (whole + part)[..., None]) & ((lists + 1) * n > least)
    every = some & (place < whole[..., None]) & (lists * n >= most)
    rank = torch.where(every, 0, torch.where(some, 1, 2))
    return lists.gather(-1, rank.argsort(dim=-1, stable=True)), every.sum(-1), (some & ~every).sum(-1)


def _padded(x: Tensor, size: int, dim: int = -2) -> Tensor:
    """Split the tokens, along `dim`, into blocks: [..., n, D] -> [..., I, size, D]. A view if all blocks are full."""
    missing = -x.shape[dim] % size
    if missing:
        x = pad(x, (*(0, 0) * (-dim - 1), 0, missing))
    return x.unflatten(dim, (-1, size))


def _whole_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float, lists: Tensor, whole: Tensor, out: Output) -> None:
    """Write to `out` [R, I, m, Dv] the attention over the first `whole` [I] blocks of each list [I, W].

    Query blocks with the same number of key blocks run together, as many as fit the cache with their gathered keys.
    """
    g, (n, _) = k.shape[0], k.shape[2:]
    longest = int(whole.max())
    room = max(longest, GATHERED // n)  # blocks; the buffers are reused: fresh pages cost as much as the copy
    buffers = [y.new_empty(g, room, *y.shape[2:]) for y in (k, v)]
    for count in whole.unique().tolist():
        if not count:
            continue
        for rows in (whole == count).nonzero().squeeze(1).split(max(1, room // count)):
            index = lists[rows, :count].flatten()
            keys, values = (
                torch.index_select(y, 1, index, out=at[:, : len(index)]).reshape(g * len(rows), 1, count * n, -1)
                for y, at in zip((k, v), buffers, strict=True)
            )
            done = fused(_swap(q[:, rows], g), keys, values, scale)
            out.o[:, rows], out.lse[:, rows] = (_swap(y, g) for y in (done.o, done.lse))


def _part_blocks(
    q: Tensor, k: Tensor, v: Tensor, scale: float, lists: Tensor, whole: Tensor, part: Tensor, first: Tensor,
    seen: Tensor, out: Output,
) -> None:  # fmt: skip
    """Merge into `out` the `part` [I] blocks after the first `whole`; a row sees keys `first` to `seen` [I, m].

    In causal attention with aligned blocks they are the diagonal: one key block per query block.
    """
    (R, I, m, _), (g, _, n, _), width = q.shape, k.shape, int(part.max())
    step = max(1, MOST // (m * n * max(width, 1) * R))
    for start in range(0, I if width else 0, step):
        rows = slice(start, start + step)
        slot = whole[rows, None] + torch.arange(width, device=q.device)
        listed = slot < (whole + part)[rows, None]
        index = lists[rows].gather(-1, slot.clamp(max=lists.shape[1] - 1)).masked_fill(~listed, 0)  # [i, width]
        begin = int(index[0, 0])
        if torch.equal(index.flatten(), torch.arange(begin, begin + index.numel(), device=q.device)):
            near = [y[:, begin : begin + index.numel()] for y in (k, v)]
        else:
            near = [y.index_select(1, index.flatten()) for y in (k, v)]
        keys, values = (y.reshape(g * len(index), 1, width * n, -1) for y in near)
        key = (index[..., None] * n + torch.arange(n, device=q.device)).flatten(1)  # [i, width n]
        mine = _swap(q[:, rows], g)
        diagonal = m == n and width == 1 and listed.all() and torch.equal(seen[rows], (key + 1).to(seen.dtype))
        if diagonal and (first[rows] <= key[:, :1]).all():
            done = fused(mine, keys, values, scale, causal=True)
        else:
            visible = (key[:, None] >= first[rows, :, None]) & (key[:, None] < seen[rows, :, None])
            visible = visible & listed.repeat_interleave(n, 1)[:, None]
            done = masked(mine, keys, values, scale, visible[:, None].repeat(g, 1, 1, 1))
        o, lse = (_swap(y, g) for y in (done.o, done.lse))
        both = torch.logaddexp(out.lse[:, rows], lse)
        before, new = ((y - both).exp().nan_to_num_(0.0)[..., None].to(o.dtype) for y in (out.lse[:, rows], lse))
        out.o[:, rows].mul_(before).addcmul_(o, new)
        out.lse[:, rows] = both


def _swap(x: Tensor, g: int) -> Tensor:
    """Swap [g R, i, ...] and [g i, R, ...]: a batch of query blocks with the R heads of a group side by side."""
    return x.unflatten(0, (g, -1)).transpose(1, 2).flatten(0, 1)
