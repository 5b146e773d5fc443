"""Block means without a mask if no token is padding: the rows are read once."""

import torch

from sparsekit.ops import block_means as definition
from sparsekit.ops.block_means import Means, Positions, Rows
from sparsekit.problem import PAD, to_heads


def why_not(x: Rows, pos: Positions, size: int) -> str | None:
    return None if x.is_cpu else f"it needs a CPU, and the tensors are on {x.device.type}"


def block_means(x: Rows, pos: Positions, size: int) -> Means:
    if (pos == PAD).any():
        return definition.block_means(x, pos, size)
    n, wide = x.shape[2], torch.promote_types(x.dtype, torch.float32)
    whole = n // size
    means = x[:, :, : whole * size].unflatten(2, (whole, size)).mean(3, dtype=wide)
    if n % size:
        means = torch.cat([means, x[:, :, whole * size :].mean(2, keepdim=True, dtype=wide)], 2)
    return to_heads(means, max(x.shape[1], pos.shape[1]))
