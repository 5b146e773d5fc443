"""The input of attention, `Problem`, and its result, `Output`.

Axes, everywhere in sparsekit:
    B batch    H query heads    G key/value heads (G divides H)
    Q queries  K keys           D head dim (Dv: of the values, where it differs)
    S kept tokens               I, J query and key blocks
A lower-case head axis `h` is 1, G or H: one choice for all heads, per key/value group, or per query head.
Layout is [B, H, Q, D]. Lengths are in tokens, times in ms, ratios are the part *kept*, in (0, 1].
"""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.functional import pad

from .by_value import ByValue, hint
from .checks import ALL, check_count
from .former_names import renamed, renamed_arguments

PAD = ALL  # position of a padding slot: sorts last, and no causal query can see it
TINY = 2.0**-126  # least scale in float32: a smaller one becomes 0 there, and 0 times -inf is NaN
LARGEST = torch.finfo(torch.float32).max
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def to_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each of the h entries for its heads // h neighbours: [B, h, ...] -> [B, heads, ...]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def one_head(x: Tensor, h: int, heads: int) -> Tensor:
    """Return the entry that serves query head `h` of `heads`: [B, h', ...] -> [B, 1, ...]."""
    return x[:, h * x.shape[1] // heads :][:, :1]


def is_abstract(x: Any) -> bool:
    """Return whether a tensor has a shape but no data: it is on the meta device, or of FakeTensorMode."""
    return isinstance(x, Tensor) and (x.is_meta or isinstance(x, FakeTensor))


@renamed(sliding_window="window")
@dataclass(frozen=True, eq=False, repr=False)
class Problem(ByValue):
    """The input of attention: q, k, v, positions, scale, mask. `Problem.of` checks and builds one.

    `Plan.compress` builds the shorter problem of the kept tokens.

    `q_pos` and `k_pos` are positions in the original sequence, ascending along the last axis, `PAD` last.
    A query sees a key if neither is padding and, when causal, the key's position is not larger, and, where there is a
    sliding window, less than `sliding_window` smaller.
    `scale` is above zero, because kernels need that: for a negative scale the queries are negated, for 0 they are 0.
    Two problems are equal if their fields are; the hints `queries_last`, `full`, `gapless` and `loose` do not count.
    """

    q: Float[Tensor, "B H Q D"]
    k: Float[Tensor, "B G K D"]
    v: Float[Tensor, "B G K Dv"]
    q_pos: Int[Tensor, "B _h Q"]  # int32
    k_pos: Int[Tensor, "B _g K"]  # int32
    scale: float
    causal: bool = True
    queries_last: bool = hint()  # True: the queries are the last keys, token for token, False: not known
    full: bool = hint()  # True: no slot is padding, False: not known
    gapless: bool = hint()  # True: the positions of queries and of keys count up by one, False: not known
    sliding_window: int | None = None  # the model's: keys a query sees, with its own; None: all; only if causal
    heads_group: "dist.ProcessGroup | None" = None  # tensor parallel: the ranks that hold the layer's other heads
    loose: bool = hint()  # True: nothing reads padding slots or their outputs: they may hold anything

    def __post_init__(self) -> None:
        if self.scale <= 0:
            q, scale = (-self.q, -self.scale) if self.scale < 0 else (self.q * 0, 1.0)
            object.__setattr__(self, "q", q)
            object.__setattr__(self, "scale", scale)
        if self.scale < TINY and self.q.dtype != torch.float64:
            object.__setattr__(self, "scale", TINY)
        if self.sliding_window is not None and self.sliding_window >= ALL:
            object.__setattr__(self, "sliding_window", None)

    @classmethod
    @renamed_arguments(sliding_window="window")
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = True,
        scale: float | None = None,
        sliding_window: int | None = None,
    ) -> "Problem":
        """Build the problem of whole sequences; fewer queries than keys (a prefill chunk, decode) are the last tokens.

        q is [B, H, Q, D], k [B, G, K, D], v [B, G, K, Dv], G divides H; one floating dtype, one device.
        `scale` multiplies q k^T; it may be negative or 0, and is 1/sqrt(D) if None. `sliding_window` is the number of
        keys that each query sees, its own among them, at least 1; None, or as many as there are keys: no window.
        Raises ValueError for anything else.
        """
        _check_tensors(q, k, v)
        Q, K = q.shape[2], k.shape[2]
        if causal and Q > K:
            raise ValueError(
                f"q: {Q} queries but only {K} keys; a causal problem allows at most as many queries as keys, "
                "because the queries are the last tokens: pass all keys, or causal=False"
            )
        if scale is None:
            scale = q.shape[3] ** -0.5
        elif isinstance(scale, bool) or not isinstance(scale, Real) or not _finite(scale):
            raise ValueError(
                f"scale: got {scale!r}; allowed is a finite number, or None for 1/sqrt(head dim): pass one of those"
            )
        elif abs(scale) > LARGEST and q.dtype != torch.float64:
            raise ValueError(
                f"scale: got {scale!r}; scores of {q.dtype} are computed in float32; allowed is at most its "
                f"largest number, {LARGEST:.3g}: pass a smaller one, or cast to float64"
            )
        if sliding_window is not None:
            check_count("sliding_window", sliding_window, 1)
            if not causal:
                raise ValueError(
                    f"sliding_window: got {sliding_window} for a problem that is not causal; allowed is None there: "
                    "pass causal=True"
                )
            sliding_window = sliding_window if sliding_window < K else None
        k_pos = torch.arange(K, device=q.device, dtype=torch.int32).expand(q.shape[0], 1, K)
        q_pos = k_pos
        if Q != K:
            q_pos = torch.arange(K - Q, K, device=q.device, dtype=torch.int32).expand(q.shape[0], 1, Q)
        known: dict[str, Any] = dict(queries_last=Q <= K, full=True, gapless=True)
        return cls(q, k, v, q_pos, k_pos, float(scale), bool(causal), sliding_window=sliding_window, **known)

    def visible(self, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        """Return the mask of the pairs of dense attention, for all queries or for the query indices `rows` [R]."""
        q_pos = self.q_pos if rows is None else self.q_pos[..., rows]
        q, k = q_pos[..., :, None], self.k_pos[..., None, :]
        H = self.q.shape[1]
        q, k = to_heads(q, H), to_heads(k, H)
        seen = (k != PAD) & (q != PAD)
        seen = seen & (k <= q) if self.causal else seen
        return seen if self.sliding_window is None else seen & (k > q - self.sliding_window)

    def reach(self) -> Int[Tensor, "B _h Q"]:
        """Return the exclusive end of the keys that each query sees, the slots [start, reach)."""
        (B, _, Q, _), K = self.q.shape, self.k.shape[2]
        if self.full and not self.causal:
            return torch.full((1, 1, 1), K, device=self.q.device).expand(B, 1, Q)
        if self.full and self.queries_last:
            return torch.arange(K - Q + 1, K + 1, device=self.q.device).expand(B, 1, Q)
        heads = max(self.q_pos.shape[1], self.k_pos.shape[1])
        q_pos, k_pos = to_heads(self.q_pos, heads), to_heads(self.k_pos, heads)
        real = (k_pos != PAD).sum(-1, keepdim=True)
        if self.causal:
            seen = torch.searchsorted(k_pos.contiguous(), q_pos.contiguous(), right=True).minimum(real)
        else:
            seen = real.expand(q_pos.shape)
        return seen.masked_fill(q_pos == PAD, 0)

    def start(self) -> Int[Tensor, "B _h Q"]:
        """Return the first key slot that each query sees: 0 without a sliding window, `reach` where it sees no key."""
        reach = self.reach()
        if self.sliding_window is None:
            return torch.zeros_like(reach)
        heads = max(reach.shape[1], self.q_pos.shape[1], self.k_pos.shape[1])
        q_pos, k_pos = to_heads(self.q_pos, heads), to_heads(self.k_pos, heads)
        first = torch.searchsorted(k_pos.contiguous(), (q_pos - (self.sliding_window - 1)).contiguous())
        return first.minimum(to_heads(reach, heads))

    def block_range(self, size: int) -> tuple[Int[Tensor, "B _h I"], Int[Tensor, "B _h I"], Int[Tensor, "B _h I"]]:
        """Return the key blocks [first, end) that each query block sees, and `edge`, where its causal diagonal begins.

        `size` is the number of tokens of a block. Queries of the block see a key in `first` and one in the last block
        before `end`, and no key outside. The last keys of its queries lie in blocks [edge, end); `edge` is `end` where
        the problem is not causal. A query block that sees no key has `first` = `end` = `edge`.
        """
        reach = self.reach()
        rows = pad(reach, (0, -reach.shape[2] % size)).unflatten(2, (-1, size))  # [B, h, I, size]
        end, least = (rows.amax(-1) + size - 1) // size, rows.masked_fill(rows == 0, PAD).amin(-1)
        edge = ((least - 1) // size).minimum(end) if self.causal else end
        if self.sliding_window is None:
            return torch.zeros_like(end), end, edge
        start = self.start()[..., ::size]  # positions ascend: the first query of a block sees furthest back
        end, edge = (to_heads(x, start.shape[1]) for x in (end, edge))
        return (start // size).minimum(end), end, edge

    def over_all_heads(self, mean: Float[Tensor, "B *r"]) -> Float[Tensor, "B *r"]:
        """Average a mean over this rank's heads over all ranks of `heads_group`, which hold equally many heads."""
        if self.heads_group is None:
            return mean
        total = mean.clone()
        dist.all_reduce(total, group=self.heads_group)
        return total / dist.get_world_size(self.heads_group)

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Count the queries and the keys that are no padding: int64 [B, h, 1] each.

        If `full`, each is a 0-d CPU tensor, which combines with tensors of any device without a launch or a wait.
        """
        if self.full:
            return torch.tensor(self.q.shape[2], device="cpu"), torch.tensor(self.k.shape[2], device="cpu")
        return (self.q_pos != PAD).sum(-1, keepdim=True), (self.k_pos != PAD).sum(-1, keepdim=True)

    def head(self, h: int) -> "Problem":
        """Return the problem of query head `h` alone."""
        q, k, v, q_pos, k_pos = (
            one_head(x, h, self.q.shape[1]) for x in (self.q, self.k, self.v, self.q_pos, self.k_pos)
        )
        return replace(self, q=q, k=k, v=v, q_pos=q_pos, k_pos=k_pos)

    def require_queries_last(self, who: str) -> None:
        """Raise ValueError, which begins with `who`, unless the queries are the last keys, token for token."""
        if self.queries_last:
            return
        Q, K = self.q.shape[2], self.k.shape[2]
        same = Q <= K and self.q_pos.shape[1] == self.k_pos.shape[1]
        if same and Q == K:
            same = torch.equal(self.q_pos, self.k_pos)
        elif same:
            n_q, n_k = ((pos != PAD).sum(-1, keepdim=True) for pos in (self.q_pos, self.k_pos))
            slot = (n_k - n_q).clamp(min=0) + torch.arange(Q, device=self.q.device)
            last = self.k_pos.gather(-1, slot.clamp(max=K - 1))
            same = bool(((last == self.q_pos) | (self.q_pos == PAD)).all())
        if not same:
            raise ValueError(
                f"{who}: the {Q} queries are not the last of the {K} keys, as {who} needs: put it before stages that "
                "choose only queries or only keys"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Output(ByValue):
    """The result of attention. Two are equal if all entries are; NaN equals nothing."""

    o: Float[Tensor, "B H Q Dv"]  # 0 where a query sees no key
    lse: Float[Tensor, "B H Q"]  # natural logarithm of the sum of exp(scores); -inf where a query sees no key

    def merge(self, other: "Output") -> "Output":
        """Return the output over the union of two disjoint key sets."""
        lse = torch.logaddexp(self.lse, other.lse)
        mine, theirs = ((x.lse - lse).exp().nan_to_num(0.0)[..., None] for x in (self, other))  # -inf minus -inf
        o = self.o.to(lse.dtype) * mine + other.o.to(lse.dtype) * theirs
        return Output(o.to(self.o.dtype), lse)


def shapes(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors with the shapes and dtypes of attention's output and log-sum-exp."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


def _finite(x: Real) -> bool:
    try:
        return math.isfinite(x)
    except OverflowError:  # a whole number beyond every float
        return False


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: got {type(x).__name__}; allowed is a torch.Tensor: convert it first")
        layout = "[B, H, Q, D]" if name == "q" else "[B, G, K, D]"
        if x.ndim != 4:
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, rank {x.ndim}; allowed is rank 4, {layout}: add or merge axes"
            )
        if x.dtype not in DTYPES:
            raise ValueError(
                f"{name}: got dtype {x.dtype}; allowed are float16, bfloat16, float32, float64: cast it first"
            )
        if 0 in x.shape:
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, which is empty; every axis of {layout} must be at least 1: "
                "skip the call for an empty sequence"
            )
    for name, x in (("k", k), ("v", v)):
        for what, mine, want in (("dtype", x.dtype, q.dtype), ("device", x.device, q.device)):
            if mine != want:
                raise ValueError(
                    f"{name}: got {what} {mine}, but q has {want}; all must agree: use {name}.to({want!r})"
                )
        if x.shape[0] != q.shape[0]:
            raise ValueError(f"{name}: got batch {x.shape[0]}, but q has {q.shape[0]}; they must be equal: expand one")
    if v.shape[1:3] != k.shape[1:3]:
        raise ValueError(
            f"v: got {v.shape[1]} heads of length {v.shape[2]}, but k has {k.shape[1]} of length {k.shape[2]}; "
            "they must be equal: pass the values of the same keys"
        )
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k: got head dim {k.shape[3]}, but q has {q.shape[3]}; they must be equal: check the layout")
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k: got {k.shape[1]} heads, which does not divide the {q.shape[1]} heads of q; "
            "allowed is any divisor: pass grouped heads as they are, not repeated"
        )
