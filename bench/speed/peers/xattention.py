"""XAttention by its authors (mit-han-lab/x-attention): its search. Its attention is a CUDA extension, not built here.

On a GPU without "100" in its name their code takes its torch path, and does so here too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from bench.speed.cases import BLOCK
from bench.speed.contender import Contender, Skipped
from bench.speed.peers.load import from_package
from sparsekit import Problem
from sparsekit.execute import Clock
from sparsekit.problem import to_heads

CHECKOUT = "XAttention"
STRIDE, THRESHOLD = 16, 0.9


def contenders(checkout: Path, p: Problem) -> Iterator[Contender]:
    if not p.q.is_cuda:
        raise Skipped('its search names the device "cuda"')
    absent = "block_sparse_attn" not in sys.modules
    if absent:  # imported at the top of their file, and used only by the attention
        stand_in = ModuleType("block_sparse_attn")
        stand_in.__dict__["block_sparse_attn_func"] = None
        sys.modules["block_sparse_attn"] = stand_in
    try:
        theirs = from_package(checkout, "xattn.src.Xattention")
    finally:
        if absent:
            del sys.modules["block_sparse_attn"]
    L = p.q.shape[2]
    power = 1 << (L - 1).bit_length()
    chunk = max(min(max(2048, power), 128 * 1024 * 2048 // power), 2048)  # as their prefill sets it

    def search(clock: Clock) -> None:
        with clock("repeat"):
            k = to_heads(p.k, p.q.shape[1])  # it asserts as many key heads as query heads
        with clock("search"):
            theirs.xattn_estimate(
                p.q, k, BLOCK, STRIDE, threshold=THRESHOLD, chunk_size=chunk,
                use_triton="100" in torch.cuda.get_device_name(),
            )  # fmt: skip

    yield Contender(
        "XAttention, search alone", "authors", "peer", search, None, f"stride {STRIDE}, threshold {THRESHOLD}"
    )
