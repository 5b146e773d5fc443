"""Sparse prefill over vLLM's backend for CPUs."""

from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from .backend import backend


def unreadable(builder: Any) -> str | None:
    """Return in words why `pages` cannot read the cache, or None."""
    return None if builder.isa.startswith("vec") else f"the cache for {builder.isa} packs its keys in another way"


def pages(layer: Any, kv_cache: Tensor, rows: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Return the first `keys` keys and values [1, G, K, D] of the request whose pages are `rows` of the cache.

    A page holds, for each head, its keys, transposed for the vector units ([D, tokens]), and then its values.
    """
    G, size, D = kv_cache.shape[1], kv_cache.shape[2], kv_cache.shape[3] // 2
    page = kv_cache[rows[: -(-keys // size)].long()].reshape(-1, G, 2, size * D)  # a copy
    k = page[:, :, 0].view(-1, G, D, size).permute(1, 0, 3, 2).reshape(1, G, -1, D)
    v = page[:, :, 1].view(-1, G, size, D).permute(1, 0, 2, 3).reshape(1, G, -1, D)
    return k[:, :, :keys], v[:, :, :keys]


Backend = backend(
    CPUAttentionBackend, CPUAttentionMetadataBuilder, CPUAttentionBackendImpl, pages, unreadable, "CPU_ATTN", "cpu"
)
