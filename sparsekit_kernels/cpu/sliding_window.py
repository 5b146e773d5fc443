"""The sliding-window fill: fused attention of runs of rows over the keys that their windows cover.

If windows are narrow, one masked call computes many runs in all heads: as many as fit the cache with their gathered
keys. Most runs see alike and share a mask. If windows are wide, all rows of a run see most of its keys, and those need
no mask.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsekit.fills import SlidingWindow
from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from . import head_slices, masked
from .attend import between

RUN = 32  # rows of a run: torch's kernel takes so many at a time; more rows see more keys that few of them need
GATHERED = 8192  # keys gathered at a time, in all heads: 2 MiB at 64 floats per key
WIDE = 2048  # tokens of a window; from this width on each run has calls of its own, unmasked if all rows see all keys
WIDE_RUN = 256  # rows of such a run: longer runs read keys less often
Answer = tuple[Tensor, Tensor]  # of the heads of one sequence: output [R, Q, Dv] and log-sum-exp [R, Q]


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    p, fill = problem, plan.fill
    assert isinstance(fill, SlidingWindow)
    B, H, Q, _ = p.q.shape
    wide = torch.promote_types(p.q.dtype, torch.float32)
    out = Output(p.q.new_zeros(B, H, Q, p.v.shape[3]), p.q.new_full((B, H, Q), float("-inf"), dtype=wide))

    low, high, sinks = fill.spans(p)  # [B, h, Q]
    h = low.shape[1]
    spans = torch.stack([low, high, sinks, to_heads(p.start(), h)], 2)  # [B, h, 4, Q]
    asked = to_heads(plan.dropped(p), H)
    runs = _wide if fill.window >= WIDE else _narrow
    for b in range(B):
        for x in range(h):
            heads, groups = head_slices(p, x, h)
            needed, part = asked[b, heads].any(0), (out.o[b, heads], out.lse[b, heads])
            runs(p.q[b, heads], p.k[b, groups], p.v[b, groups], p.scale, spans[b, x], needed, part)
    out.o.masked_fill_(~asked[..., None], 0.0)
    out.lse.masked_fill_(~asked, float("-inf"))
    return out


def _narrow(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Tensor, needed: Tensor, out: Answer) -> None:
    """Write to `out` the attention of q [R, Q, D] over k [g, K, D] and v [g, K, Dv], many runs per call."""
    Q, (g, K), m = q.shape[1], k.shape[:2], RUN
    low, high, sinks, start = pad(spans, (0, -Q % m)).unflatten(1, (-1, m))  # [I, m]
    begin = low.masked_fill(high <= low, K).amin(-1, keepdim=True)  # [I, 1]
    slot = torch.arange(int((high - begin).clamp(min=0).max()), device=q.device)
    sink = torch.arange(int(sinks.max()), device=q.device)
    width = len(sink) + len(slot)
    if not width:  # all rows are padding
        return
    far = [y.clamp(max=len(sink)) for y in (low, high, sinks, start)]
    views = torch.stack([low - begin, high - begin, *far], 1)[..., None]  # [I, 6, m, 1]: most runs have the same view
    last = visible = views.new_empty(0)
    step = min(max(1, GATHERED // (g * width)), len(low))
    buffers = [y.new_empty(g, step * width, y.shape[2]) for y in (k, v)]
    for i in range(0, len(low), step):
        runs, rows = slice(i, i + step), slice(i * m, min((i + step) * m, Q))
        if not needed[rows].any():
            continue
        view, near = views[runs], begin[runs] + slot
        if (view == view[:1]).all():
            view = view[:1]
        if not torch.equal(view, last):
            last, (lows, highs, *far) = view, view.unbind(1)
            visible = torch.cat([_far(sink, *far), (slot >= lows) & (slot < highs)], -1)  # [i or 1, m, width]
        index = torch.cat([sink.expand(len(near), -1), near.clamp(max=K - 1)], -1).flatten()
        keys, values = (
            torch.index_select(y, 1, index, out=at[:, : len(index)]).unflatten(1, (-1, width)).transpose(0, 1)
            for y, at in zip((k, v), buffers, strict=True)
        )  # [i, g, width, D]
        queries = pad(q[:, rows], (0, 0, 0, (rows.start - rows.stop) % m)).unflatten(1, (-1, m)).transpose(0, 1)
        done = masked(queries, keys, values, scale, visible[:, None])
        for y, new in zip(out, (done.o, done.lse), strict=True):
            y[:, rows] = new.transpose(0, 1).flatten(1, 2)[:, : rows.stop - rows.start]


def _wide(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Tensor, needed: Tensor, out: Answer) -> None:
    """Do as `_narrow`, one run per call."""
    keys, values = k[None], v[None]
    for i in range(0, q.shape[1], WIDE_RUN):
        rows = slice(i, i + WIDE_RUN)
        if not needed[rows].any():
            continue
        low, high, sinks, start = spans[:, rows]
        done = between(q[None, :, rows], keys, values, scale, low, high)
        if far := int(sinks.max()):
            seen = _far(torch.arange(far, device=q.device), *(y[:, None] for y in (low, high, sinks, start)))
            done = done.merge(masked(q[None, :, rows], keys[:, :, :far], values[:, :, :far], scale, seen[None, None]))
        out[0][:, rows], out[1][:, rows] = done.o[0], done.lse[0]


def _far(slot: Tensor, low: Tensor, high: Tensor, sinks: Tensor, start: Tensor) -> Tensor:
    """Return whether a row sees a sink that lies outside its window."""
    return (slot < sinks) & ((slot < low) | (slot >= high)) & (slot >= start)
