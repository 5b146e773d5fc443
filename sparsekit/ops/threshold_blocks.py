"""The op `threshold_blocks`: the key blocks whose score by block means is near the best one in some head of a group."""

import math

import torch
from torch import Tensor

from ..band import sinks_and_band
from ..plan import Blocks
from ..problem import Problem, to_heads
from ..samples import Arguments, Samples
from .block_means import block_means

ENTRIES = 2**24  # scores in memory at a time: 64 MiB in float32


def why_not(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> str | None:
    return None


def threshold_blocks(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> Blocks:
    """Return block lists per key/value group [B, G, I], for blocks of `size` queries and of as many keys.

    The score of a block is exp(mean query . mean key * scale). Of the key blocks that some query of a block sees, the
    lists hold those that score at least `alpha`, in (0, 1], times as high as the best one in some head of the group,
    those that hold one of the first `sinks` tokens, and those that hold one of a query's nearest `near` keys.
    """
    p, m, H = problem, size, problem.q.shape[1]
    k = block_means(p.k, p.k_pos, m)  # [B, G, J, D]
    B, G, J, D = k.shape
    q = block_means(p.q, p.q_pos, m).view(B, G, H // G, -1, D).to(k.dtype)
    grouped = lambda x: to_heads(x, H).unflatten(1, (G, -1))  # noqa: E731
    first, end, _ = (grouped(x)[..., None] for x in p.block_range(m))  # [B, G, R, I, 1]
    block = torch.arange(J, device=k.device)
    open_ = (block >= first.amin(2)) & (block < end.amax(2))  # [B, G, I, J]
    step = max(1, ENTRIES // (B * H * J))
    parts = []
    for i in range(0, open_.shape[2], step):
        some = slice(i, i + step)
        scores = (torch.einsum("bgrid,bgjd->bgrij", q[:, :, :, some], k) * p.scale).nan_to_num(0.0, 0.0, 0.0)
        scores = scores.masked_fill(~open_[:, :, None, some], -math.inf)
        parts.append((scores >= scores.amax(-1, keepdim=True) + math.log(alpha)).any(2))
    forced = grouped(sinks_and_band(p, sinks, near, m)).any(2)
    return Blocks.of(forced | (open_ & torch.cat(parts, 2)), (m, m))


def fake(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    q, heads = problem.q, max(problem.k.shape[1], problem.k_pos.shape[1])
    lists = q.shape[0], heads, -(-q.shape[2] // size)
    return q.new_empty(lists, dtype=torch.int32), q.new_empty(*lists, longest, dtype=torch.int32)


def samples(draw: Samples) -> Arguments:
    given = 0.5, 1, 3, draw.M
    return {"": (draw.problem(), *given), "window, padding": (draw.problem(7, padded=True), *given)}
