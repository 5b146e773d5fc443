"""A whole pipeline as one torch.library operator, so that compiled and exported models can hold one.

What is computed depends on the data, so a compiler could not look inside with profit: it sees shapes alone.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .pipeline import Pipeline


@torch.library.custom_op("sparsekit::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, spec: str, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv] by the pipeline of a spec.

    Returns the output [B, H, Q, Dv] and the log-sum-exp [B, H, Q], float32 or wider.
    """
    out = _pipeline(spec).output(q, k, v, causal=causal, scale=scale)
    return out.o.contiguous(), out.lse.contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spec: str, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


@lru_cache(maxsize=256)
def _pipeline(spec: str) -> "Pipeline":
    from .pipeline import Pipeline

    return Pipeline.from_spec(spec)
