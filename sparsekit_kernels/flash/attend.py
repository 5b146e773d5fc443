"""Dense, compressed and block-sparse attention by FlashAttention.

FlashAttention-4 on Hopper and Blackwell. Elsewhere, or without it, attention without block lists by FlashAttention-3,
cuDNN or FlashAttention-2, the last two as torch ships them.

These kernels know no positions: with causality, row i of n_q sees the keys up to n_k - n_q + i. That is what positions
say where the queries are the last keys, token for token. Padding slots come last; FlashAttention-4 is told how many
slots are real, and lengths that differ per head are folded into its batch.
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

# SDPA makes these same calls, and drops the lse
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
    """For q, k, v of these shapes, all of them real: the output of dense attention, with little before the launch."""
    p, major = problem, dispatch.capability(problem.q.device)[0]
    D, Dv = p.q.shape[3], p.v.shape[3]
    as_it_is = p.full and p.sliding_window is None and head_dims(p, major) == (D, Dv)
    if plan != Plan() or not as_it_is or fourth_missing(major):
        return None
    if p.q.shape[2] == 1 and D == Dv:  # a last query sees all; torch's kernel alone splits the keys of a single one
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
    """What shapes, types and parameters say on a GPU of compute capability `major`.x.

    `missing` says why there is no FlashAttention-4.
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
        return "it has no sliding window"
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
    """Query blocks are a multiple of the first, key blocks of the second, and at most the third."""
    Q, heads = problem.q.shape[2], problem.q.shape[1] // problem.k.shape[1]
    D, Dv = head_dims(problem, major)
    if major == 9:  # a key block is one tile, which shrinks to it
        return 64, 16, 128 if D <= 128 or (D <= 192 and Dv <= 128) else 112 if D <= 192 else 80
    two_tiles = Q * heads > 128 and Dv != 256  # a thread block answers two tiles of 128 rows
    return 256 if two_tiles else 128, 128, None


def head_dims(problem: Problem, major: int) -> tuple[int, int]:
    """The head dims FlashAttention-4 takes that are nearest above, filled up with zeros."""
    D, Dv = (-(-x.shape[3] // 8) * 8 for x in (problem.q, problem.v))
    if major == 9 or max(D, Dv) <= 128:
        return D, Dv
    return (192, 128) if D <= 192 and Dv <= 128 else (256, 256)


def irregular(problem: Problem, told: bool) -> str | None:
    """What positions say, at the price of a host synchronisation where nothing is known of them.

    `told` is whether the kernel learns how many slots are real.
    """
    p, (Q, K) = problem, (problem.q.shape[2], problem.k.shape[2])
    if (told or p.full) and (p.queries_last or not p.causal):
        return None
    if p.q_pos is p.k_pos and p.causal:  # slot by slot the same tokens, and padding comes last: no row sees any
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
        return "queries and keys keep different tokens, and it has no positions to tell the future by: take triton"
    return "sequences of different lengths need FlashAttention-4 here: take triton"


def fourth(problem: Problem, blocks: Blocks | None, major: int, window: int | None = None) -> Output:
    """FlashAttention-4 on a GPU of compute capability `major`.x; with a `window`, rows see the last keys of theirs."""
    from flash_attn.cute import flash_attn_varlen_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    given = arguments(problem, blocks, major, window)
    if blocks:
        given["block_sparse_tensors"] = BlockSparseTensorsTorch(**given["block_sparse_tensors"])
    return answer(problem, *flash_attn_varlen_func(**given, return_lse=True))


def answer(problem: Problem, o: Tensor, lse: Tensor) -> Output:
    """[B c, Q, H/c, D] and [B c, H/c, Q] in our shapes; padding queries get nothing, whatever stands there,
    if anybody reads it."""
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
    """What FlashAttention-4 is called with; c heads of differing lengths are so many sequences: [B c, L, H/c, D]."""
    p, (D, Dv) = problem, head_dims(problem, major)
    n_q, n_k = _lengths(p, blocks)  # [B, c]
    c = 1 if n_k is None else n_k.shape[1]
    q, k, v = (_folded(_wide(x, d), c).transpose(1, 2) for x, d in ((p.q, D), (p.k, D), (p.v, Dv)))
    given = dict(q=q, k=k, v=v, softmax_scale=p.scale, causal=p.causal)
    given |= {name: n.flatten() for name, n in (("seqused_q", n_q), ("seqused_k", n_k)) if n is not None}
    if window is not None:
        given["window_size"] = (window - 1, 0)  # keys before and after a row's own
    if blocks:
        # [B, g, I]; the kernel cuts off the end of the keys in the last block only
        whole, part = dispatch.run("seen_blocks", p.q.device.type, blocks, p.reach())
        heads = c if whole.shape[1] <= c else p.q.shape[1]  # one list for all heads of a sequence, or one for each
        lists = whole + part, blocks.indices.split(blocks.n, -1)[0]  # joined lists may be wider, all padding
        counts, indices = (_folded(to_heads(x, heads), c) for x in lists)
        given["block_sparse_tensors"] = dict(
            mask_block_cnt=counts,
            mask_block_idx=indices,
            full_block_cnt=torch.zeros_like(counts),  # not compiled for Hopper without; not causal on Blackwell: empty
            full_block_idx=indices,
            block_size=blocks.size,
        )
    return given


def _lengths(p: Problem, blocks: Blocks | None) -> tuple[Tensor | None, Tensor | None]:
    """How many queries and keys are real [B, c], where the kernel must know."""
    if p.full:
        return None, None
    if not p.causal:
        return None, _real(p.k_pos)  # padding queries change nothing
    if blocks:
        return None, None  # lists leave the padding out; Blackwell wants another form of them beside lengths of queries
    c = max(p.q_pos.shape[1], p.k_pos.shape[1])
    n_k = to_heads(_real(p.k_pos), c)
    return (n_k if p.q_pos is p.k_pos else to_heads(_real(p.q_pos), c)), n_k


def _real(pos: Tensor) -> Tensor:
    return (pos != PAD).sum(-1, dtype=torch.int32)


def _folded(x: Tensor, c: int) -> Tensor:
    """[B, H, ...] -> [B c, H/c, ...]; fewer heads than c are repeated."""
    return x if c == 1 else to_heads(x, max(x.shape[1], c)).unflatten(1, (c, -1)).flatten(0, 1)


def _wide(x: Tensor, width: int) -> Tensor:
    """Head dims filled up with zeros: they change no score, and nothing of the output that is kept."""
    return x if x.shape[3] == width else pad(x, (0, width - x.shape[3]))


def third_or_second(p: Problem, major: int) -> Output:
    """The fastest there is without FlashAttention-4: it knows no lists and no lengths."""
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
    return answer(p, o.transpose(1, 2), lse.flatten(2))  # cuDNN's has a last axis of one, but not for fake tensors


def _cudnn_can(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    given = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, True)
    return torch.backends.cuda.can_use_cudnn_attention(given)
