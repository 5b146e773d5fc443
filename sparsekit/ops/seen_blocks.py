"""The op `seen_blocks`: the part of each block list that a kernel reads, and the part that needs a mask of pairs."""

import torch
from jaxtyping import Int
from torch import Tensor

from ..plan import Blocks
from ..samples import Arguments, Samples

Reach = Int[Tensor, "B _h Q"]
Counts = Int[Tensor, "B _g I"]


def why_not(blocks: Blocks, reach: Tensor) -> str | None:
    return None


def seen_blocks(blocks: Blocks, reach: Reach) -> tuple[Counts, Counts]:
    """Count the blocks that all rows of a query block see whole, and those that rows see in part: `Blocks.seen`."""
    whole, part = blocks.seen(reach)
    return whole.int(), part.int()


def fake(blocks: Blocks, reach: Tensor) -> tuple[Tensor, Tensor]:
    B, g, I = blocks.counts.shape
    shape = B, max(g, reach.shape[1]), I
    return reach.new_empty(shape, dtype=torch.int32), reach.new_empty(shape, dtype=torch.int32)


def samples(draw: Samples) -> Arguments:
    blocks = draw.blocks(draw.N)
    return {name: (blocks, draw.problem(padded=bool(name)).reach()) for name in ("", "padding")}
