"""The best blocks of a map, by the means that are fast on a CPU."""

from sparsekit.ops.block_map import First, Heads, Last, Mask, Means, Positions, Queries, best

from .block_means import block_means


def why_not(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> str | None:
    return None if q.is_cpu else f"it needs a CPU, and the tensors are on {q.device.type}"


def block_map(
    q: Queries,
    q_pos: Positions,
    means: Means,
    heads: Heads,
    first: First,
    last: Last,
    scale: float,
    gamma: float,
    size: int,
) -> Mask:
    return best(block_means(q, q_pos, size), means, heads, first, last, scale, gamma)
