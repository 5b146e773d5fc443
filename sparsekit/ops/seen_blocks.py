"""How much of each block list is seen: what an attention kernel has to walk, and where it has to look at each pair."""

from jaxtyping import Int
from torch import Tensor

from ..plan import Blocks

Reach = Int[Tensor, "B _h Q"]
Counts = Int[Tensor, "B _g I"]


def why_not(blocks: Blocks, reach: Tensor) -> str | None:
    return None


def seen_blocks(blocks: Blocks, reach: Reach) -> tuple[Counts, Counts]:
    """How many blocks all rows of a query block see whole, and how many more some see a part of: `Blocks.seen`."""
    whole, part = blocks.seen(reach)
    return whole.int(), part.int()
