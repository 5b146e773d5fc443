"""Tests of Problem's answers to which keys a query sees."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems
from torch.nn.functional import pad

from sparsekit.problem import PAD, to_heads


@given(p=problems(), size=st.integers(1, 9), window=st.none() | st.integers(1, 12))
def test_a_block_range_holds_what_is_seen_and_no_more(p, size, window):
    p = replace(p, sliding_window=window if p.causal else None)
    H, Q, K = p.q.shape[1], p.q.shape[2], p.k.shape[2]
    seen = pad(p.visible(), (0, -K % size, 0, -Q % size)).unflatten(3, (-1, size)).unflatten(2, (-1, size))
    seen = seen.transpose(3, 4)  # [B, H, I, J, rows, keys]
    some = seen.any(-1).any(-1)
    first, end, edge = (to_heads(x, H) for x in p.block_range(size))
    block = torch.arange(some.shape[3])
    inside = (block >= first[..., None]) & (block < end[..., None])
    assert (inside | ~some).all()
    ends = inside & ((block == first[..., None]) | (block == end[..., None] - 1))
    assert (some | ~ends).all() and ((end > first) == some.any(-1)).all()
    if not p.causal:
        assert torch.equal(edge, end)
        return
    last = (p.visible() * torch.arange(1, K + 1)).amax(-1)  # [B, H, Q], 0: sees nothing
    rows = pad(last, (0, -Q % size)).unflatten(2, (-1, size))
    nearest = rows.masked_fill(rows == 0, PAD).amin(-1)
    expected = torch.where(rows.amax(-1) > 0, (nearest - 1) // size, end)
    assert torch.equal(edge, expected)
