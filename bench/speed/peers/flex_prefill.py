"""FlexPrefill by its authors (ByteDance-Seed/FlexPrefill): its search, its block-sparse kernel, and both together."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.speed.cases import BLOCK, FLEX
from bench.speed.contender import Contender, Skipped
from bench.speed.peers.load import from_file
from sparsekit import Blocks, Plan, Problem
from sparsekit.execute import Clock

CHECKOUT = "FlexPrefill"
TAU, MIN_BUDGET = 0.1, 512  # as in their README


def contenders(checkout: Path, p: Problem) -> Iterator[Contender]:
    if not p.q.is_cuda:
        raise Skipped("its kernels need a GPU")
    if p.q.dtype != torch.bfloat16:
        raise Skipped(f"its kernels take bfloat16 only, and this is {p.q.dtype}")
    theirs = from_file(checkout / "flex_prefill" / "ops" / "flex_prefill_attention.py")
    q, k, v = (x.transpose(1, 2).contiguous() for x in (p.q, p.k, p.v))
    n = math.ceil(p.q.shape[2] / BLOCK)
    for gamma in FLEX:

        def found(gamma: float = gamma) -> Any:
            return theirs.get_active_blocks(q, k, v, BLOCK, gamma, math.ceil(MIN_BUDGET / BLOCK), n, TAU)

        def search(clock: Clock, found: Any = found) -> None:
            with clock("search"):
                found()

        def whole(clock: Clock, found: Any = found) -> Tensor:
            with clock("search"):
                lists = found()
            with clock("kernel"):
                return theirs.triton_block_wise_attention(q, k, v, lists, BLOCK).transpose(1, 2)

        lists = found()

        def kernel(clock: Clock, lists: Any = lists) -> Tensor:
            with clock("kernel"):
                return theirs.triton_block_wise_attention(q, k, v, lists, BLOCK).transpose(1, 2)

        plan, case = Plan(blocks=listed(lists[0], n)), f"FlexPrefill, gamma {gamma}"
        what = f"gamma {gamma}, tau {TAU}, min_budget {MIN_BUDGET}"
        yield Contender(case, "authors", "peer", whole, plan, what)
        yield Contender(f"{case}, attend alone", "authors", "peer", kernel, plan, what)
        yield Contender(f"{case}, search alone", "authors", "peer", search, None, what)


def listed(lists: list[Tensor], n: int) -> Blocks:
    """Return their lists as block lists; theirs are, for each head, flat indices of its n x n grid."""
    mask = torch.zeros(1, len(lists), n * n, dtype=torch.bool, device=lists[0].device)
    for h, mine in enumerate(lists):
        mask[0, h, mine.long()] = True
    return Blocks.of(mask.unflatten(-1, (n, n)), (BLOCK, BLOCK))
