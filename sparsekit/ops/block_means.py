"""The op `block_means`: the mean of each block of tokens, without padding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..problem import PAD, to_heads
from ..samples import Arguments, Samples

Rows = Float[Tensor, "B _g n D"]
Positions = Int[Tensor, "B _h n"]
Means = Float[Tensor, "B heads I D"]


def why_not(x: Tensor, pos: Tensor, size: int) -> str | None:
    return None


def block_means(x: Rows, pos: Positions, size: int) -> Means:
    """Average each block of `size` tokens: [B, g, n, D] -> [B, max(g, h), I, D], float32 or wider.

    Padding, where `pos` is PAD, does not count; the last block may be smaller; the mean of a block of padding is 0.
    """
    heads = max(x.shape[1], pos.shape[1])
    real = (to_heads(pos, heads) != PAD)[..., None]
    x = to_heads(x, heads).to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~real, 0.0)
    extra = (0, 0, 0, -x.shape[2] % size)
    total = pad(x, extra).unflatten(2, (-1, size)).sum(3)
    return total / pad(real.to(x.dtype), extra).unflatten(2, (-1, size)).sum(3).clamp(min=1)


def fake(x: Tensor, pos: Tensor, size: int) -> Tensor:
    B, g, n, D = x.shape
    return x.new_empty(B, max(g, pos.shape[1]), -(-n // size), D, dtype=torch.promote_types(x.dtype, torch.float32))


def samples(draw: Samples) -> Arguments:
    p, half = draw.problem(), draw.rand(0, draw.B, 1, draw.N, draw.D).half()
    return {"": (p.k, p.k_pos, 5), "float16": (half, draw.rand(1, draw.B, draw.H, draw.N).int(), 4)}
