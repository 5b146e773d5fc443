"""Hypothesis strategies for small problems on which stages are tried: float64, seeded, finite numbers."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..fills import SlidingWindow, Zeros
from ..problem import PAD, Problem
from ..stages import Union

SEEDS = st.integers(0, 2**16)
FILLS = st.sampled_from(
    [
        None,
        Zeros(),
        SlidingWindow(1, sinks=0),
        SlidingWindow(3, sinks=0),
        SlidingWindow(2, sinks=3),
        SlidingWindow(1, 1),
    ]
)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def problems(draw, square=None, causal=None, most=24):
    G = draw(st.sampled_from([1, 2]))
    B, H = draw(st.integers(1, 2)), G * draw(st.sampled_from([1, 2]))
    K = draw(st.integers(1, most))
    square = draw(st.booleans()) if square is None else square
    Q = K if square else draw(st.integers(1, K))
    D, Dv = draw(st.sampled_from([1, 4, 5])), draw(st.sampled_from([4, 3]))
    sharp = draw(st.sampled_from([0.3, 1.0, 4.0]))  # flat to peaked attention
    q, k, v = (randn(draw(SEEDS), *s) for s in ((B, H, Q, D), (B, G, K, D), (B, G, K, Dv)))
    return Problem.of(q * sharp, k, v, causal=draw(st.booleans()) if causal is None else causal)


@st.composite
def windowed(draw, square=None, most=24):
    """Draw a causal problem with a sliding window, and sometimes padding at the end of a row."""
    p = draw(problems(square=square, causal=True, most=most))
    p = Problem.of(p.q, p.k, p.v, sliding_window=draw(st.integers(1, p.k.shape[2] + 1)))
    if draw(st.booleans()) and p.q.shape[2] == p.k.shape[2] > 1:
        n = draw(st.integers(1, p.q.shape[2] - 1))
        pos = p.q_pos.clone()
        pos[0, :, n:] = PAD
        p = replace(p, q_pos=pos, k_pos=pos, full=False)
    return p


def with_blocks(stage: Any, size: int) -> Any:
    """Return the stage with blocks of `size` tokens, if it has blocks: its own may exceed every problem here."""
    if isinstance(stage, Union):
        return Union([with_blocks(pattern, size) for pattern in stage.patterns])
    return replace(stage, block_size=size) if hasattr(stage, "block_size") else stage
