"""MInference by its authors (microsoft/MInference): the block top-k pattern, whose kernel needs no CUDA build.

Their vertical-slash pattern needs their CUDA extension for its index.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.speed.contender import Contender, Skipped
from bench.speed.peers.load import from_file
from sparsekit import Blocks, Plan, Problem
from sparsekit.execute import Clock
from sparsekit.problem import to_heads

CHECKOUT = "MInference"
TOP, BLOCK = 100, 64  # their defaults


def contenders(checkout: Path, p: Problem) -> Iterator[Contender]:
    if not p.q.is_cuda:
        raise Skipped("its kernel needs a GPU")
    if p.q.dtype == torch.float32:
        raise Skipped("its kernel computes in float16 or bfloat16, and this is torch.float32")
    theirs = from_file(checkout / "minference" / "ops" / "block_sparse_flash_attention.py")

    def whole(clock: Clock) -> Tensor:
        with clock("repeat"):
            k, v = (to_heads(x, p.q.shape[1]) for x in (p.k, p.v))  # it needs one key head per query head
        with clock("attend"):
            return theirs.block_sparse_attention(p.q, k, v, TOP)

    L = p.q.shape[2]
    q, k = (torch.nn.functional.pad(x, (0, 0, 0, BLOCK - L % BLOCK)) for x in (p.q, to_heads(p.k, p.q.shape[1])))
    best = theirs._build_block_index(q, k, TOP, BLOCK, BLOCK)[:, :, : -(-L // BLOCK)]
    n = q.shape[2] // BLOCK
    # most of an early row's hundred blocks lie in the future: the kernel masks them
    mask = torch.zeros(*best.shape[:3], n, dtype=torch.bool, device=q.device).scatter(-1, best.long(), True)
    plan = Plan(blocks=Blocks.of(mask[..., : -(-L // BLOCK)].tril(), (BLOCK, BLOCK)))
    yield Contender("MInference block top-k", "authors", "peer", whole, plan, f"top_k {TOP}, block {BLOCK}")
