"""Plain torch, no compiler: fast on a CPU, runs on any device.

Each op becomes a few calls of torch's own fused attention. It also returns the log-sum-exp, which merges the outputs
of several calls.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsekit.problem import Output, Problem

# SDPA calls these too, and drops the lse
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None) -> Output:
    """Compute attention of q [B, H, M, D] over k [B, G, N, D], v [B, G, N, Dv]; no key head is copied.

    `causal` compares indices. `mask` [B or 1, 1, M, N], on a CPU only, is added to the scores: 0, or -inf for a hidden
    pair.
    """
    (B, H, M, D), (G, Dv) = q.shape, (v.shape[1], v.shape[3])
    if not (q.is_cpu or (q.is_cuda and q.dtype != torch.float64)):
        visible = torch.ones(M, k.shape[2], dtype=torch.bool, device=q.device)
        return _plain(q, k, v, scale, visible.tril() if causal else visible)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))  # the kernels need contiguous head dims
    width = max(D, Dv) if q.is_cpu else -(-max(D, Dv) // 8) * 8
    if width != D or width != Dv:  # they need D == Dv, on a GPU a multiple of 8; zeros change no score
        q, k, v = (pad(x, (0, width - x.shape[3])) for x in (q, k, v))
    if H != G:
        q = q.unflatten(1, (G, H // G)).flatten(0, 1)
        k, v = (x.flatten(0, 1)[:, None].expand(-1, H // G, -1, -1) for x in (k, v))
        mask = mask.repeat_interleave(G, 0) if mask is not None and len(mask) > 1 else mask
    if q.is_cpu:
        o, lse = _FLASH(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    else:
        o, lse = _EFFICIENT(q, k, v, None, True, 0.0, causal, scale=scale)[:2]
    return Output(o.reshape(B, H, M, -1)[..., :Dv], lse[..., :M].reshape(B, H, M))


def masked(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor) -> Output:
    """Compute attention over the visible pairs [B or 1, 1, M, N]; zeros and an lse of -inf if a row sees none."""
    if not q.is_cpu:
        return _plain(q, k, v, scale, visible)
    mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, float("-inf"))
    done, blind = fused(q, k, v, scale, mask=mask), ~visible.any(-1)
    if blind.any():
        done = Output(done.o.masked_fill(blind[..., None], 0.0), done.lse.masked_fill(blind, float("-inf")))
    if done.lse.isnan().any():  # NaN - inf is NaN: hidden scores must be replaced, not added to
        return _plain(q, k, v, scale, visible)
    return done


def head_slices(p: Problem, x: int, h: int) -> tuple[slice, slice]:
    """Return the query heads and the key heads that choice x of h serves."""
    H, G = p.q.shape[1], p.k.shape[1]
    first = x * G // h
    return slice(x * H // h, (x + 1) * H // h), slice(first, max((x + 1) * G // h, first + 1))


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor) -> Output:
    """Compute attention without a fused call over the visible pairs, a mask that expands to [B, H, M, N]."""
    (B, H, M, D), (G, N), wide = q.shape, k.shape[1:3], torch.promote_types(q.dtype, torch.float32)
    scores = (q.reshape(B, G, -1, D).to(wide) @ k.mT.to(wide)).view(B, H, M, N).mul_(scale)
    scores.masked_fill_(~visible, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = torch.where(visible, (scores - lse[..., None]).exp(), 0.0).to(v.dtype).view(B, G, -1, N)
    return Output((weights @ v).view(B, H, M, -1), lse)
