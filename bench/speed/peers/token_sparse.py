"""Token Sparse Attention by its authors (dongwonjo/Token-Sparse-Attention), keeping a fixed part of the tokens.

Their call expands the keys to the query heads, chooses, gathers, attends and scatters; all of it is timed. They attend
by FlashAttention-2, which is called through torch here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.speed.cases import least
from bench.speed.contender import Contender, Skipped
from bench.speed.peers.load import from_package
from sparsekit import Plan, Problem, Tokens
from sparsekit.execute import Clock

CHECKOUT = "Token-Sparse-Attention"
KEPT = 0.3


def contenders(checkout: Path, p: Problem) -> Iterator[Contender]:
    if not p.q.is_cuda:
        raise Skipped("its kernels assert a GPU")
    theirs = from_package(checkout, "sparse_attn.token_sparse.sparse_cluster")
    cluster = theirs.SparseCluster()
    cluster.coverage, cluster.min_tokens = 1.0, least(KEPT, p.q.shape[2])
    cluster.window_size, cluster.kernel_size = 128, 7

    def chosen(clock: Clock) -> tuple[Tensor, Any]:
        with clock("repeat"):
            k, v = (theirs.repeat_kv(x, p.q.shape[1] // p.k.shape[1]) for x in (p.k, p.v))
        with clock("index"):
            kept = cluster.get_index(p.q, k)
        with clock("compress"):
            return kept, cluster.compress_qkv(p.q, k, v, kept)

    def scattered(o: Tensor, kept: Tensor, clock: Clock) -> Tensor:
        with clock("decompress"):
            B, H, L, D = p.q.shape
            return cluster.decompress_output(o.transpose(1, 2), kept).view(B, L, H, D).transpose(1, 2)

    def overhead(clock: Clock) -> Tensor:
        kept, short = chosen(clock)
        return scattered(short[0], kept, clock)  # the kept queries instead of their output: the same size

    def whole(clock: Clock) -> Tensor:
        kept, short = chosen(clock)
        with clock("attend"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            o = scaled_dot_product_attention(short[0], short[1], short[2], is_causal=True)
        return scattered(o, kept, clock)

    k = theirs.repeat_kv(p.k, p.q.shape[1] // p.k.shape[1])
    kept = cluster.get_index(p.q, k)
    if kept is None:
        raise Skipped(f"it keeps every one of {p.q.shape[2]} tokens: the length is too short for it")
    tokens = Tokens(kept.int(), p.q.shape[2])
    what = f"coverage 1.0, min_tokens {cluster.min_tokens}"
    yield Contender(f"TokenCoverage, kept {KEPT}", "authors", "peer", whole, Plan(tokens, tokens), what)
    yield Contender(f"TokenCoverage, kept {KEPT}, overhead", "authors", "peer", overhead, None, what)
