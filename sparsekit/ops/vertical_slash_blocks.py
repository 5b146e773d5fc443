"""The op `vertical_slash_blocks`: the block lists of a pattern of key blocks (verticals) and distances (slashes)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..plan import Blocks
from ..samples import Arguments, Samples

OfKeys = Bool[Tensor, "B H J"]
OfQueries = Int[Tensor, "B H I"]
OfPairs = Bool[Tensor, "B H I J"]


def why_not(
    verticals: Tensor, slashes: Tensor, first: Tensor, last: Tensor, extra: Tensor | None, size: tuple[int, int]
) -> str | None:
    return None


def vertical_slash_blocks(
    verticals: OfKeys,
    slashes: OfKeys,
    first: OfQueries,
    last: OfQueries,
    extra: OfPairs | None,
    size: tuple[int, int],
) -> Blocks:
    """Return, for each query block, the key blocks up to `last` that are vertical, on a slash, or in `extra`.

    A query block's own keys lie in the key blocks `first` to `last`, one or two (the queries need not start a block).
    `slashes` is the mask of the distances, in blocks before `first` or `last`, that are kept. `last` is -1 for a query
    block of padding.
    """
    j = torch.arange(verticals.shape[-1], device=verticals.device)
    mask = verticals[:, :, None]
    for own in (first, last):
        distance = own[..., None] - j  # [B, H, I, J]
        near = slashes.gather(-1, distance.clamp(0, len(j) - 1).flatten(2)).view_as(distance)
        mask = mask | ((distance >= 0) & near)
    if extra is not None:
        mask = mask | extra
    return Blocks.of(mask & (j <= last[..., None]), size)


def fake(
    verticals: Tensor, slashes: Tensor, first: Tensor, last: Tensor, extra: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    counts = first.new_empty(first.shape, dtype=torch.int32)
    return counts, first.new_empty(*first.shape, longest, dtype=torch.int32)


def samples(draw: Samples) -> Arguments:
    B, H, J = draw.B, draw.H, -(-draw.N // draw.M)
    own, extra = draw.count(J).expand(B, H, J), draw.rand(7, B, H, J, J) > 1
    given = draw.rand(5, B, H, J) > 0, draw.rand(6, B, H, J) > 0, own, own.clone()
    return {"": (*given, None, (draw.M, draw.M)), "further pairs": (*given, extra, (draw.M, draw.M))}
