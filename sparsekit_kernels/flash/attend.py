"""Dense, compressed and block-sparse attention by FlashAttention.

On Hopper and Blackwell it is FlashAttention-4. On other GPUs, or if that is not installed, attention without block
lists is computed by FlashAttention-3, cuDNN or FlashAttention-2; torch ships the last two.

These kernels read no positions: in causal attention, row i of n_q sees the keys up to n_k - n_q + i. This is right if
the queries are the last keys, token for token. Padding slots come last. FlashAttention-4 takes the number of real
slots; if it differs between heads, the heads become part of its batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sparsekit import dispatch
from sparsekit.plan import Blocks, Plan
from sparsekit.problem import PAD, Output, Problem, to_heads

from . import Launch, fourth_missing, launch, plain, third

# SDPA calls these too, and drops the lse
_CUDNN = torch.ops.aten._scaled_dot_product_cudnn_attention
_SECOND = torch.ops.aten._scaled_dot_product_flash_attention  # causal from the lower right, as for causal_lower_right


def why_not(problem: Problem, plan: Plan) -> str | None:
    major = dispatch.capability(problem.q.device)[0]
    missing = fourth_missing(major)
    told = missing is None and not (plan.blocks and problem.causal)
    return refusal(problem, plan, major, missing) or irregular(problem, told)


def attend(problem: Problem, plan: Plan) -> Output:
    major = dispatch.capability(problem.q.device)[0]
    return third_or_second(problem, major) if fourth_missing(major) else fourth(problem, plan.blocks, major)


def kernel(problem: Problem, plan: Plan) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return dense attention as a function of q, k, v of these shapes without padding that does little but launch.

    Return None if FlashAttention-4 cannot compute it as it is.
    """
    p, major = problem, dispatch.capability(problem.q.device)[0]
    D, Dv = p.q.shape[3], p.v.shape[3]
    as_it_is = p.full and p.sliding_window is None and head_dims(p, major) == (D, Dv)
    if plan != Plan() or not as_it_is or fourth_missing(major):
        return None
    if p.q.shape[2] == 1 and D == Dv:  # the last query sees all; only torch's kernel splits the keys of one query
        return partial(scaled_dot_product_attention, scale=p.scale, enable_gqa=True)
    from flash_attn.cute import flash_attn_func

    attend = partial(flash_attn_func, softmax_scale=p.scale, causal=p.causal)
    return partial(_output, attend, launch(attend, *(x.transpose(1, 2) for x in (p.q, p.k, p.v))))


def _output(
    attend: Callable[..., tuple[Tensor, ...]], launch: Launch | None, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if launch is None or not (plain(q) and plain(k) and plain(v)):
        return attend(q, k, v)[0].transpose(1, 2)
    o = q.new_empty(*q.shape[:3], v.shape[3])
    launch(q, k, v, o)
    return o.transpose(1, 2)


def refusal(problem: Problem, plan: Plan, major: int, missing: str | None) -> str | None:
    """Return why shapes, types or parameters are not supported on a GPU of compute capability `major`.x, or None.

    `missing` says why there is no FlashAttention-4; None if there is.
    """
    p = problem
    D, Dv = p.q.shape[3], p.v.shape[3]
    if plan.queries or plan.keys:
        return "it does not read through token indices: gather first"
    if p.q.dtype not in (torch.float16, torch.bfloat16):
        return f"{p.q.dtype} is not supported: cast to bfloat16 or float16"
    if max(D, Dv) > 256:
        return f"head dim {max(D, Dv)} is larger than 256"
    if p.sliding_window is not None:
        return "it does not support the problem's sliding window: take triton"
    if plan.blocks is None:
        return None
    if missing:
        return f"block lists need FlashAttention-4, and {missing}; take triton"
    (m, n), (step_m, step_n, most_n) = plan.blocks.size, block_sizes(p, major)
    if m % step_m or n % step_n or (most_n and n > most_n):
        at_most = f", at most {most_n}" if most_n else ""
        return (
            f"block size {m, n}: at this head dim and compute capability {major}.x query blocks must be a multiple "
            f"of {step_m} tokens and key blocks of {step_n}{at_most}; take triton"
        )
    return None


def block_sizes(problem: Problem, major: int) -> tuple[int, int, int | None]:
    """Return what block sizes must be: query blocks a multiple of [0]; key blocks a multiple of [1], at most [2]."""
    Q, heads = problem.q.shape[2], problem.q.shape[1] // problem.k.shape[1]
    D, Dv = head_dims(problem, major)
    if major == 9:  # a key block is one tile, which shrinks to it
        return 64, 16, 128 if D <= 128 or (D <= 192 and Dv <= 128) else 112 if D <= 192 else 80
    two_tiles = Q * heads > 128 and Dv != 256  # a thread block computes two tiles of 128 rows
    return 256 if two_tiles else 128, 128, None


def head_dims(problem: Problem, major: int) -> tuple[int, int]:
    """Return the smallest head dims that FlashAttention-4 supports and these fit in, padded with zeros."""
    D, Dv = (-(-x.shape[3] // 8) * 8 for x in (problem.q, problem.v))
    if major == 9 or max(D, Dv) <= 128:
        return D, Dv
    return (192, 128) if D <= 192 and Dv <= 128 else (256, 256)


def irregular(problem: Problem, told: bool) -> str | None:
    """Return why these positions are not supported, or None; if no flag answers that, the host waits for the GPU.

    `told` says whether the kernel is given the number of real slots.
    """
    p, (Q, K) = problem, (problem.q.shape[2], problem.k.shape[2])
    if (told or p.full) and (p.queries_last or not p.causal):
        return None
    if p.q_pos is p.k_pos and p.causal:  # both sides are the same tokens, and padding comes last: no row sees padding
        return None
    heads = max(p.q_pos.shape[1], p.k_pos.shape[1])
    q_pos, k_pos, reach = (to_heads(x, heads) for x in (p.q_pos, p.k_pos, p.reach()))
    expected = torch.full_like(reach, K)
    if p.causal:
        before = _real(k_pos) - _real(q_pos) if told else torch.full_like(q_pos[..., 0], K - Q)
        expected = before[..., None] + torch.arange(1, Q + 1, device=q_pos.device)
    if ((reach == expected) | (q_pos == PAD)).all():
        return None
    if p.causal:
        return "queries and keys keep different tokens, and it reads no positions to hide the future by: take triton"
    return "sequences of different lengths need FlashAttention-4: take triton"


def fourth(problem: Problem, blocks: Blocks | None, major: int, window: int | None = None) -> Output:
    """Run FlashAttention-4 on a GPU of compute capability `major`.x; with a `window`, a row sees so many last keys."""
    from flash_attn.cute import flash_attn_varlen_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    given = arguments(problem, blocks, major, window)
    if blocks:
        given["block_sparse_tensors"] = BlockSparseTensorsTorch(**given["block_sparse_tensors"])
    return answer(problem, *flash_attn_varlen_func(**given, return_lse=True))


def answer(problem: Problem, o: Tensor, lse: Tensor) -> Output:
    """Return o [B c, Q, H/c, D] and lse [B c, H/c, Q] in our shapes.

    Padding queries get zeros and -inf, unless the problem is `loose`: then nobody reads them.
    """
    p, (B, H, Q, _), Dv = problem, problem.q.shape, problem.v.shape[3]
    o = o.transpose(1, 2)
    if o.shape != (B, H, Q, Dv):
        o, lse = o.narrow(3, 0, Dv).reshape(B, H, Q, Dv), lse.reshape(B, H, Q)
    out = Output(o, lse)
    if not p.full and not p.loose:
        blind = to_heads(p.q_pos == PAD, H)
        out.o.masked_fill_(blind.unsqueeze(3), 0.0)
        out.lse.masked_fill_(blind, float("-inf"))
    return out


def arguments(problem: Problem, blocks: Blocks | None, major: int, window: int | None = None) -> dict[str, Any]:
    """Return the arguments for FlashAttention-4; c heads of different lengths become c sequences: [B c, L, H/c, D]."""
    p, (D, Dv) = problem, head_dims(problem, major)
    n_q, n_k = _lengths(p, blocks)  # [B, c]
    c = 1 if n_k is None else n_k.shape[1]
    q, k, v = (_folded(_wide(x, d), c).transpose(1, 2) for x, d in ((p.q, D), (p.k, D), (p.v, Dv)))
    given = dict(q=q, k=k, v=v, softmax_scale=p.scale, causal=p.causal)
    given |= {name: n.flatten() for name, n in (("seqused_q", n_q), ("seqused_k", n_k)) if n is not None}
    if window is not None:
        given["window_size"] = (window - 1, 0)  # number of keys before and after the row's own
    if blocks:
        # [B, g, I]; the kernel hides keys beyond the end in the last block of a list only
        whole, part = dispatch.run("seen_blocks", p.q.device.type, blocks, p.reach())
        heads = c if whole.shape[1] <= c else p.q.shape[1]  # one list for all heads of a sequence, or one for each
        lists = whole + part, blocks.indices.split(blocks.n, -1)[0]  # joined lists may be wider, by padding alone
        counts, indices = (_folded(to_heads(x, heads), c) for x in lists)
        given["block_sparse_tensors"] = dict(
            mask_block_cnt=counts,
            mask_block_idx=indices,
            full_block_cnt=torch.zeros_like(counts),  # empty: Hopper compiles only with it, Blackwell masks nothing
            full_block_idx=indices,
            block_size=blocks.size,
        )
    return given


def _lengths(p: Problem, blocks: Blocks | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the numbers of real queries and keys [B, c]; None for a number that the kernel does not need."""
    if p.full:
        return None, None
    if not p.causal:
        return None, _real(p.k_pos)  # padding queries change nothing
    if blocks:
        return None, None  # lists leave padding out; with numbers of queries, Blackwell needs lists in another form
    c = max(p.q_pos.shape[1], p.k_pos.shape[1])
    n_k = to_heads(_real(p.k_pos), c)
    return (n_k if p.q_pos is p.k_pos else to_heads(_real(p.q_pos), c)), n_k


def _real(pos: Tensor) -> Tensor:
    return (pos != PAD).sum(-1, dtype=torch.int32)


def _folded(x: Tensor, c: int) -> Tensor:
    """Reshape [B, H, ...] to [B c, H/c, ...]; fewer heads than c are repeated."""
    return x if c == 1 else to_heads(x, max(x.shape[1], c)).unflatten(1, (c, -1)).flatten(0, 1)


def _wide(x: Tensor, width: int) -> Tensor:
    """Pad head dims with zeros: they change no score and no kept part of the output."""
    return x if x.shape[3] == width else pad(x, (0, width - x.shape[3]))


def third_or_second(p: Problem, major: int) -> Output:
    """Run the fastest kernel other than FlashAttention-4; it supports neither block lists nor lengths."""
    (D, Dv), square = (p.q.shape[3], p.v.shape[3]), p.q.shape[2] == p.k.shape[2]
    width = -(-max(D, Dv) // 8) * 8
    q, k, v = (_wide(x if x.stride(3) == 1 else x.contiguous(), width) for x in (p.q, p.k, p.v))
    if major == 9 and (fa3 := third()):
        rows = (x.transpose(1, 2) for x in (q, k, v))
        return answer(p, *fa3.flash_attn_func(*rows, softmax_scale=p.scale, causal=p.causal, return_attn_probs=True))
    if major >= 9 and (square or not p.causal) and _cudnn_can(q, k, v, p.causal):
        o, lse = _CUDNN(q, k, v, None, True, 0.0, p.causal, scale=p.scale)[:2]
    else:
        o, lse = _SECOND(q, k, v, 0.0, p.causal, scale=p.scale)[:2]
    return answer(p, o.transpose(1, 2), lse.flatten(2))  # cuDNN's lse has a last axis of 1, except for fake tensors


def _cudnn_can(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    given = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, True)
    return torch.backends.cuda.can_use_cudnn_attention(given)
