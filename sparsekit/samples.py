"""Samples: random arguments on which ops are tried, the same for the same seed.

An op's definition in `sparsekit/ops/` makes its arguments from these, in its function `samples`. The tests run every
backend on them, and `sparsekit backends` checks which backends can run them.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from .fills import SlidingWindow
from .plan import Blocks, Plan, Tokens
from .problem import PAD, Problem

Arguments = dict[str, tuple[Any, ...]]  # the arguments of an op, by what is special about them


@dataclass(frozen=True)
class Samples:
    """Random arguments: B sequences, H query heads, G key/value heads, N tokens, head dims D and Dv, blocks of M."""

    seed: int = 0
    B: int = 2
    H: int = 4
    G: int = 2
    N: int = 24
    D: int = 8
    Dv: int = 6
    M: int = 4
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, seed: int, device: str = "cpu") -> "Samples":
        """Return samples of random sizes, which depend on the seed."""
        draw = Random(seed)
        G = draw.choice([1, 2])
        B, H, N = draw.choice([1, 2]), G * draw.choice([1, 2, 3]), draw.randrange(9, 34)
        return cls(seed, B, H, G, N, D=draw.choice([4, 8, 16]), M=draw.choice([3, 4, 8]), device=device)

    def rand(self, number: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a standard normal tensor, which depends on `number` and the seed."""
        drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + number))
        return drawn.to(self.device, dtype or torch.float32)

    def ints(self, values: Any) -> Tensor:
        """Return an int64 tensor of these values."""
        return torch.tensor(values, device=self.device)

    def count(self, n: int) -> Tensor:
        """Return 0 to n - 1."""
        return torch.arange(n, device=self.device)

    def problem(self, window: int | None = None, padded: bool = False) -> Problem:
        """Return a causal problem with sliding window `window`, and padding in the first sequence if `padded`."""
        B, H, G, N = self.B, self.H, self.G, self.N
        shapes = (B, H, N, self.D), (B, G, N, self.D), (B, G, N, self.Dv)
        q, k, v = (self.rand(i, *shape, dtype=self.dtype) for i, shape in enumerate(shapes))
        p = Problem.of(q, k, v, sliding_window=window)
        if padded:
            pos = p.q_pos.clone()
            pos[0, :, -3:] = PAD
            p = replace(p, q_pos=pos, k_pos=pos.clone(), full=False)
        return p

    def blocks(self, n: int) -> Blocks:
        """Return random block lists of n queries and keys for each head."""
        I = -(-n // self.M)
        return Blocks.of(self.rand(4, self.B, self.H, I, I) > -0.3, (self.M, self.M))

    def plans(self) -> dict[str, Plan]:
        """Return plans of every kind: all pairs, blocks, queries, keys, or both, the same or different ones."""
        B, G, N = self.B, self.G, self.N
        some = Tokens.of(self.count(N).remainder(3).bool().expand(B, 1, N))
        ragged = Tokens.of((self.rand(3, B, G, N) > 0) | (self.count(N) == N - 1))
        return {
            "": Plan(),
            "block lists": Plan(blocks=self.blocks(N)),
            "queries": Plan(ragged),
            "keys": Plan(keys=ragged),
            "tokens, block lists": Plan(some, some, self.blocks(some.idx.shape[-1])),
            "queries and other keys": Plan(some, ragged),
        }

    def filled(self) -> Plan:
        """Return a plan that keeps some queries and fills the others with a sliding window and a sink."""
        return Plan(self.plans()["queries"].queries, fill=SlidingWindow(3, sinks=1))
