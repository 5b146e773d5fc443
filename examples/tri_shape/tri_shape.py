"""Tri-shape: the first tokens, the nearest ones, and everything for the last queries, by block.

Kept: every key block that holds one of the first `sinks` keys or one of a query's nearest `window` keys. Query blocks
that hold one of the last `last` queries keep every block that they see. Nothing is scored.
Source: the Tri-shape pattern of SCBench, arXiv:2412.10319, by authors of MInference.
Differs from the authors' code: whole blocks are kept, so a query sees up to `block_size - 1` more keys on each side.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsekit import Blocks, Plan, Problem
from sparsekit.checks import check_amount, check_size


@dataclass(frozen=True)
class TriShape:
    """A stage that keeps sinks, a band and the last rows; its Plan has blocks, alike for heads of equal positions.

    Args:
        sinks: first keys, which every query sees, in tokens, >= 0
        window: nearest keys that every query sees, its own among them, in tokens, >= 1
        last: number of last queries that see every key that dense attention shows them, in tokens, >= 0
        block_size: tokens, >= 1, of queries and of keys
    """

    sinks: int = 128
    window: int = 1024
    last: int = 128
    block_size: int = 128
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_amount(self, "sinks", 0)
        check_amount(self, "window", 1)
        check_amount(self, "last", 0)
        check_size("block_size", self.block_size)

    def __call__(self, problem: Problem) -> Plan:
        if not problem.causal:
            raise ValueError("TriShape: got a problem that is not causal; allowed is a causal one: use another stage")
        p, m = problem, self.block_size
        first, end, edge = (x[..., None] for x in p.block_range(m))  # [B, h, I, 1]
        key = torch.arange(-(-p.k.shape[2] // m), device=p.k.device)  # number of each key block
        query = torch.arange(-(-p.q.shape[2] // m), device=p.q.device)[:, None]
        near = key >= edge - (self.window + m - 2) // m  # the farthest of `window` keys lies this many blocks back
        asked = (query + 1) * m > p.lengths()[0][..., None] - self.last  # padding is not among the last queries
        seen = (key >= first) & (key < end)  # [B, h, I, J]
        return Plan(blocks=Blocks.of(seen & (near | asked | (key * m < self.sinks)), (m, m)))


DENSE = TriShape(window=2**30)
