"""Dense attention by every kernel there is: the yardsticks. Ours is compared with the fastest of the same run.

Keys and values stay grouped. A kernel that needs one key head per query head gets them repeated, outside its time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench.speed.contender import Contender, Skipped
from sparsekit import Plan, Problem
from sparsekit.problem import to_heads

CPU = "torch SDPA"  # the only one on a CPU
PAPERS = "FlashAttention-2"  # the yardstick of published speed-ups
BLOCK = 128  # block size of FlexAttention's mask
PROBE = 1024  # tokens of a trial that shows whether a kernel supports grouped keys
Run = Callable[[], Tensor]


def _sdpa(p: Problem, *backends: SDPBackend) -> Run:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(list(backends)):
            return scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=p.scale, enable_gqa=q.shape[1] != k.shape[1]
            )

    k, v = p.k, p.v
    try:
        attend(*(x[:, :, :PROBE] for x in (p.q, k, v)))
    except RuntimeError:  # torch raises it if no kernel supports the call, perhaps because of the groups
        k, v = (to_heads(x, p.q.shape[1]) for x in (k, v))
    return lambda: attend(p.q, k, v)


def _flash4(p: Problem) -> Run:
    if not p.q.is_cuda:
        raise Skipped("it needs a GPU")
    try:
        from flash_attn.cute import flash_attn_func
    except ImportError as error:
        raise Skipped(f"flash-attn-4 is not installed ({error})") from None
    q, k, v = (x.transpose(1, 2) for x in (p.q, p.k, p.v))

    def run() -> Tensor:
        answer = flash_attn_func(q, k, v, softmax_scale=p.scale, causal=True)
        return (answer[0] if isinstance(answer, tuple) else answer).transpose(1, 2)

    return run


def _flex(p: Problem) -> Run:
    if not p.q.is_cuda:
        raise Skipped("it is compiled for a GPU only here")
    mask, attend = causal_mask(p.q.shape[2], p.q.device), torch.compile(flex_attention, dynamic=False)

    def run() -> Tensor:
        grouped = p.q.shape[1] != p.k.shape[1]
        return attend(p.q, p.k, p.v, block_mask=mask, scale=p.scale, enable_gqa=grouped)

    return run


def causal_mask(length: int, device: torch.device) -> BlockMask:
    """Return FlexAttention's block lists of a causal mask, without its own search, which writes the whole mask."""
    n = math.ceil(length / BLOCK)
    at = torch.arange(n, dtype=torch.int32, device=device)
    full = at.expand(n, n).contiguous()  # row i sees the blocks 0 to i - 1 whole
    return BlockMask.from_kv_blocks(
        torch.ones_like(at)[None, None],
        at[:, None].expand(n, n).contiguous()[None, None],  # and block i in part
        at[None, None],
        full[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, q, k: q >= k,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )


KERNELS: dict[str, Callable[[Problem], Run]] = {
    "FlashAttention-4": _flash4,
    "cuDNN": lambda p: _sdpa(p, SDPBackend.CUDNN_ATTENTION),
    PAPERS: lambda p: _sdpa(p, SDPBackend.FLASH_ATTENTION),
    "efficient": lambda p: _sdpa(p, SDPBackend.EFFICIENT_ATTENTION),
    "FlexAttention": _flex,
    CPU: lambda p: _sdpa(p, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
}


def contenders(name: str, p: Problem) -> list[Contender]:
    """Return a dense kernel, ready to run. Raises Skipped, or the kernel's own error, if it cannot run."""
    run = KERNELS[name](p)
    return [Contender("dense", name, "dense", lambda clock: run(), Plan(), "dense")]


def names(device: str) -> list[str]:
    """Return the names of the yardsticks for a kind of device."""
    return [name for name in KERNELS if (name == CPU) == (device == "cpu")]
