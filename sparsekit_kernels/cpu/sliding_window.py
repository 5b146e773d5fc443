"""The sliding-window fill: short runs of rows, each against the few keys its windows cover, by fused attention."""

import torch
from torch.nn.functional import pad

from sparsekit.fills import SlidingWindow
from sparsekit.plan import Plan
from sparsekit.problem import Output, Problem, to_heads

from . import head_slices, masked

MOST = 2**24  # masked pairs at a time: 64 MiB in float32


def why_not(problem: Problem, plan: Plan) -> str | None:
    return None if isinstance(plan.fill, SlidingWindow) else "the plan's fill is not a sliding window"


def sliding_window(problem: Problem, plan: Plan) -> Output:
    p, fill = problem, plan.fill
    assert isinstance(fill, SlidingWindow)
    (B, H, Q, _), (G, K) = p.q.shape, p.k.shape[1:3]
    wide = torch.promote_types(p.q.dtype, torch.float32)
    out = Output(p.q.new_zeros(B, H, Q, p.v.shape[3]), p.q.new_full((B, H, Q), float("-inf"), dtype=wide))

    low, high, sinks = fill.spans(p)  # [B, heads, Q]
    heads = low.shape[1]
    m = min(max(fill.window // 2, 64), 512)  # rows a run: longer ones read keys less often, but more of them in vain
    last, start = (0, -Q % m), to_heads(p.start(), heads)
    low, high, sinks, start = (
        pad(x, last).unflatten(2, (-1, m)) for x in (low, high, sinks, start)
    )  # [B, heads, I, m]
    real = high > low
    begin = low.masked_fill(~real, K).amin(-1)  # [B, heads, I]
    width = int((high.amax(-1) - begin).clamp(min=0).max())
    slot = torch.arange(width, device=p.q.device)
    sink = torch.arange(int(sinks.max()), device=p.q.device)
    asked = to_heads(plan.filled(p), H)

    n = max(heads, G)
    for b in range(B):
        for x in range(n):
            query_heads, (group,) = head_slices(p, x, n)[0], range(G)[head_slices(p, x, n)[1]]
            own = x * heads // n
            R = query_heads.stop - query_heads.start
            step = max(1, MOST // (m * (width + len(sink)) * R))
            for i in range(0, low.shape[2], step):
                these = slice(i, min(i + step, low.shape[2]))
                rows = slice(i * m, min(these.stop * m, Q))
                if not asked[b, query_heads, rows].any():
                    continue
                lows, highs, seen, starts = (y[b, own, these, :, None] for y in (low, high, sinks, start))  # [i, m, 1]
                near = begin[b, own, these, None] + slot  # [i, width]
                visible = (near[:, None] >= lows) & (near[:, None] < highs)
                first = sink.expand(len(near), -1)
                far = (first[:, None] < seen) & ((first[:, None] < lows) | (first[:, None] >= highs))
                visible = torch.cat([far & (first[:, None] >= starts), visible], -1)
                index = torch.cat([first, near.clamp(max=K - 1)], -1)
                k, v = (y[b, group][index][:, None] for y in (p.k, p.v))  # [i, 1, sinks + width, D]
                ragged = (0, 0, 0, (these.stop - i) * m - (rows.stop - rows.start))
                q = pad(p.q[b, query_heads, rows], ragged).unflatten(1, (-1, m)).transpose(0, 1)  # [i, R, m, D]
                done = masked(q, k, v, p.scale, visible[:, None])
                o, lse = (y.transpose(0, 1).flatten(1, 2)[:, : rows.stop - rows.start] for y in (done.o, done.lse))
                out.o[b, query_heads, rows], out.lse[b, query_heads, rows] = o, lse
    out.o.masked_fill_(~asked[..., None], 0.0)
    out.lse.masked_fill_(~asked, float("-inf"))
    return out
