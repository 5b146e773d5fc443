"""The sliding-window fill: fused attention of runs of rows over the keys that their windows cover.

If windows are narrow, one masked call computes many runs. If they are wide, all rows of a run see most of its keys,
and those need no mask.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsekit.fills import SlidingWindow
from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from . import head_slices, masked
from .attend import between

RUN = 512  # rows of a run, at most: longer runs read keys less often, but more keys that few of their rows see
WIDE = 2048  # tokens of a window; from this width on each run has calls of its own, unmasked if all rows see all keys
MOST = 2**24  # masked pairs at a time: 64 MiB in float32


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    p, fill = problem, plan.fill
    assert isinstance(fill, SlidingWindow)
    (B, H, Q, _), G = p.q.shape, p.k.shape[1]
    wide = torch.promote_types(p.q.dtype, torch.float32)
    out = Output(p.q.new_zeros(B, H, Q, p.v.shape[3]), p.q.new_full((B, H, Q), float("-inf"), dtype=wide))

    low, high, sinks = fill.spans(p)  # [B, heads, Q]
    heads = low.shape[1]
    spans = torch.stack([low, high, sinks, to_heads(p.start(), heads)], 2)  # [B, heads, 4, Q]
    asked, n, m = to_heads(plan.dropped(p), H), max(heads, G), min(max(fill.window // 2, 64), RUN)
    runs = _wide if fill.window >= WIDE else _narrow
    for b in range(B):
        for x in range(n):
            mine, (group,) = head_slices(p, x, n)[0], range(G)[head_slices(p, x, n)[1]]
            needed = asked[b, mine].any(0)
            for rows, done in runs(
                p.q[b, mine], p.k[b, group], p.v[b, group], p.scale, spans[b, x * heads // n], needed, m
            ):
                out.o[b, mine, rows], out.lse[b, mine, rows] = done.o[0], done.lse[0]
    out.o.masked_fill_(~asked[..., None], 0.0)
    out.lse.masked_fill_(~asked, float("-inf"))
    return out


def _narrow(
    q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Tensor, needed: Tensor, m: int
) -> Iterator[tuple[slice, Output]]:
    """Yield rows of q [R, Q, D] and their output over k, v [K, D], batch of one: as many m-row runs as MOST allows."""
    (R, Q, _), K = q.shape, len(k)
    low, high, sinks, start = pad(spans, (0, -Q % m)).unflatten(1, (-1, m))  # [I, m]
    begin = low.masked_fill(high <= low, K).amin(-1)  # [I]
    slot = torch.arange(int((high.amax(-1) - begin).clamp(min=0).max()), device=q.device)
    sink = torch.arange(int(sinks.max()), device=q.device)
    if not len(slot) + len(sink):  # all rows are padding
        return
    step = max(1, MOST // (m * (len(slot) + len(sink)) * R))
    for i in range(0, len(low), step):
        these = slice(i, min(i + step, len(low)))
        rows = slice(i * m, min(these.stop * m, Q))
        if not needed[rows].any():
            continue
        lows, highs, seen, starts = (y[these, :, None] for y in (low, high, sinks, start))  # [i, m, 1]
        near = begin[these, None] + slot  # [i, width]
        visible = (near[:, None] >= lows) & (near[:, None] < highs)
        first = sink.expand(len(near), -1)
        far = _far(first[:, None], lows, highs, seen, starts)
        visible = torch.cat([far, visible], -1)
        index = torch.cat([first, near.clamp(max=K - 1)], -1)
        ragged = (0, 0, 0, (these.stop - i) * m - (rows.stop - rows.start))
        queries = pad(q[:, rows], ragged).unflatten(1, (-1, m)).transpose(0, 1)  # [i, R, m, D]
        done = masked(queries, k[index][:, None], v[index][:, None], scale, visible[:, None])
        o, lse = (y.transpose(0, 1).flatten(1, 2)[None, :, : rows.stop - rows.start] for y in (done.o, done.lse))
        yield rows, Output(o, lse)


def _wide(
    q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Tensor, needed: Tensor, m: int
) -> Iterator[tuple[slice, Output]]:
    """Yield the rows and outputs that `_narrow` yields, one run at a time."""
    keys, values = k[None, None], v[None, None]
    for i in range(0, q.shape[1], m):
        rows = slice(i, i + m)
        if not needed[rows].any():
            continue
        low, high, sinks, start = spans[:, rows]
        done = between(q[None, :, rows], keys, values, scale, low, high)
        if far := int(sinks.max()):
            seen = _far(torch.arange(far, device=q.device), *(y[:, None] for y in (low, high, sinks, start)))
            done = done.merge(masked(q[None, :, rows], keys[:, :, :far], values[:, :, :far], scale, seen[None, None]))
        yield rows, done


def _far(slot: Tensor, low: Tensor, high: Tensor, sinks: Tensor, start: Tensor) -> Tensor:
    """Return whether a row sees a sink that lies outside its window."""
    return (slot < sinks) & ((slot < low) | (slot >= high)) & (slot >= start)
