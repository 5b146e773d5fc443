"""Sparse prefill over vLLM's FlashAttention backend."""

from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from .backend import backend


def unreadable(builder: Any) -> str | None:
    """Return in words why `pages` cannot read the cache, or None."""
    return None


def pages(layer: Any, kv_cache: Tensor, rows: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Return the first `keys` keys and values [1, G, K, D] of the request whose pages are `rows` of the cache.

    A page [G, tokens, 2 D] holds each head's keys and values side by side.
    """
    G, size, D = kv_cache.shape[1], kv_cache.shape[2], kv_cache.shape[3] // 2
    page = kv_cache[rows[: -(-keys // size)].long()].transpose(0, 1).reshape(1, G, -1, 2 * D)[:, :, :keys]
    return page[..., :D], page[..., D:]


Backend = backend(
    FlashAttentionBackend, FlashAttentionMetadataBuilder, FlashAttentionImpl, pages, unreadable, "CUSTOM", "cuda"
)
