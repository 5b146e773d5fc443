"""The plan: which tokens are kept, and which blocks of the kept tokens are computed.

A Plan is data. Its meaning is `pairs`: the set of (query, key) pairs it computes, in the original coordinates.
Every backend must compute exactly that set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .by_value import ByValue, brief, hint
from .checks import ALL, check_count, check_size
from .fills import Fill, SlidingWindow, Zeros
from .former_names import former
from .problem import PAD, Output, Problem, one_head, to_heads


def ascending(
    mask: Bool[Tensor, "*r n"], width: int | None = None
) -> tuple[Int[Tensor, "*r w"], Int[Tensor, "*r"], bool]:
    """Return the indices of the true entries of each row, their counts, and whether no row is known to be padded.

    The indices ascend and are padded with n to `width`: that of the fullest row, or a given one that no row may exceed,
    for which the host need not wait.
    """
    n = mask.shape[-1]
    counts = mask.sum(-1, dtype=torch.int32)
    full = False
    if width is None:
        least, most = torch.stack(counts.aminmax()).tolist()  # the one host synchronisation of a choice
        width, full = max(most, 1), 0 < least == most
    slot = torch.where(mask, mask.cumsum(-1) - 1, width)
    out = torch.full((*mask.shape[:-1], width + 1), n, dtype=torch.int32, device=mask.device)
    index = torch.arange(n, dtype=torch.int32, device=mask.device).expand(mask.shape)
    # every false entry lands in the spare last column, which is cut off
    return out.scatter(-1, slot, index)[..., :width].contiguous(), counts, full


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(ByValue):
    """A choice of tokens out of n: int32, ascending, no repeats, padded at the end with n."""

    idx: Int[Tensor, "B _h S"]
    n: int
    full: bool = hint()  # True: no row is padded, False: not known

    def __repr__(self) -> str:
        most = "" if self.full else "at most "
        return f"Tokens({most}{self.idx.shape[-1]:,} of {self.n:,}, idx={brief(self.idx)})"

    @classmethod
    def of(cls, kept: Bool[Tensor, "B _h n"]) -> "Tokens":
        """Return the tokens that are true in a mask."""
        idx, _, full = ascending(kept)
        return cls(idx, kept.shape[-1], full)

    def kept(self) -> Bool[Tensor, "B _h n"]:
        """Return the mask of the chosen tokens."""
        flag = torch.zeros(*self.idx.shape[:2], self.n + 1, dtype=torch.bool, device=self.idx.device)
        return flag.scatter(-1, self.idx.long(), True)[..., : self.n]

    def rank(self) -> Int[Tensor, "B _h n"]:
        """Return the index of each token among the kept tokens, int32; -1 for a dropped token."""
        B, h, S = self.idx.shape
        slot = torch.arange(S, dtype=torch.int32, device=self.idx.device).expand(B, h, S)
        place = torch.full((B, h, self.n + 1), -1, dtype=torch.int32, device=self.idx.device)
        return place.scatter(-1, self.idx.long(), slot)[..., : self.n].contiguous()

    def gather(self, x: Tensor, pad: int | float) -> Tensor:
        """Copy the chosen rows: [B, g, n, ...] -> [B, max(g, h), S, ...]; padding slots hold `pad`."""
        heads = max(x.shape[1], self.idx.shape[1])
        idx, groups = to_heads(self.idx, heads), x.shape[1]
        row = torch.arange(x.shape[0] * heads, device=x.device).view(x.shape[0], heads, 1)
        flat = row // (heads // groups) * self.n + idx.clamp(max=self.n - 1)  # heads read their group's rows, no copies
        y = x.flatten(0, 2).index_select(0, flat.flatten()).view(*idx.shape, *x.shape[3:])
        return y.masked_fill_(idx.view(*idx.shape, *[1] * (x.ndim - 3)) == self.n, pad)

    def scatter(self, y: Tensor, fill: int | float) -> Tensor:
        """Copy rows back to their tokens: [B, H, S, ...] -> [B, H, n, ...]; the dropped rows are `fill`."""
        B, H = y.shape[:2]
        idx = to_heads(self.idx, H)
        base = torch.arange(B * H, device=y.device).view(B, H, 1) * self.n
        flat = torch.where(idx < self.n, base + idx, B * H * self.n)  # padding lands in a spare last row
        out = y.new_full((B * H * self.n + 1, *y.shape[3:]), fill)
        out.index_copy_(0, flat.flatten(), y.flatten(0, 2))
        return out[:-1].view(B, H, self.n, *y.shape[3:])

    def then(self, inner: "Tokens") -> "Tokens":
        """Return the tokens that `inner` chooses among these."""
        heads = max(self.idx.shape[1], inner.idx.shape[1])
        outer = torch.nn.functional.pad(to_heads(self.idx, heads), (0, 1), value=self.n)
        return Tokens(outer.gather(-1, to_heads(inner.idx, heads).long()), self.n, self.full and inner.full)


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(ByValue):
    """A choice of blocks in the grid of kept queries by kept keys: for each query block a list of key blocks.

    `size` is that of a block in (query, key) tokens; the last ones may be smaller. The lists ascend, without repeats,
    and are padded with n, the number of key blocks.
    """

    counts: Int[Tensor, "B _h I"]  # int32
    indices: Int[Tensor, "B _h I W"]  # int32
    size: tuple[int, int]  # tokens
    n: int  # key blocks

    def __repr__(self) -> str:
        most = f"at most {self.indices.shape[-1]:,} of {self.n:,} in a list"
        return f"Blocks({most}, size={self.size}, indices={brief(self.indices)})"

    @classmethod
    def of(cls, mask: Bool[Tensor, "B _h I J"], size: tuple[int, int], width: int | None = None) -> "Blocks":
        """Return the blocks that are true in a mask; `width`, if known, is a number of blocks that no list exceeds."""
        indices, counts, _ = ascending(mask, width and min(width, mask.shape[-1]))
        return cls(counts, indices, size, mask.shape[-1])

    def mask(self) -> Bool[Tensor, "B _h I J"]:
        """Return the blocks as a mask, for tests and pictures: at 1M tokens it takes 64 MiB a head, the lists less."""
        flag = torch.zeros(*self.indices.shape[:3], self.n + 1, dtype=torch.bool, device=self.indices.device)
        return flag.scatter(-1, self.indices.long(), True)[..., : self.n]

    def seen(self, reach: Int[Tensor, "B _h Q"]) -> tuple[Int[Tensor, "B _g I"], Int[Tensor, "B _g I"]]:
        """Count the blocks of each list that all rows of the query block see whole, and those that rows see in part.

        `reach` is that of the compressed problem. Lists ascend, so whole blocks come first, then partly seen ones, and
        blocks that no row sees are last. Rows that see no key do not count.
        """
        (m, n), heads = self.size, max(reach.shape[1], self.indices.shape[1])
        lists, reach = to_heads(self.indices, heads), to_heads(reach, heads)
        rows = torch.nn.functional.pad(reach, (0, -reach.shape[2] % m)).unflatten(2, (-1, m))  # [B, h, I, m]
        most = rows.amax(-1, keepdim=True)
        least = rows.masked_fill(rows == 0, PAD).amin(-1, keepdim=True).minimum(most)
        whole = (lists < least.div(n, rounding_mode="floor")).sum(-1)
        return whole, (lists < (most + n - 1).div(n, rounding_mode="floor")).sum(-1) - whole

    def __and__(self, other: "Blocks") -> "Blocks":
        """Return the blocks that are in both lists."""
        a, b, heads = self._paired(other)
        at = torch.searchsorted(b.contiguous(), a.contiguous()).clamp(max=b.shape[-1] - 1)
        both = (b.gather(-1, at) == a) & (a < self.n)
        return self._listed(torch.where(both, a, self.n), heads)

    def __or__(self, other: "Blocks") -> "Blocks":
        """Return the blocks that are in either list."""
        a, b, heads = self._paired(other)
        merged = torch.cat([a, b], -1).sort(-1).values
        repeat = torch.nn.functional.pad(merged[..., 1:] == merged[..., :-1], (1, 0))
        return self._listed(merged.masked_fill(repeat, self.n), heads)

    def _paired(self, other: "Blocks") -> tuple[Tensor, Tensor, int]:
        if self.size != other.size or self.n != other.n:
            raise ValueError(
                f"blocks: cannot combine blocks of {self.size} with blocks of {other.size} tokens; allowed are equal "
                "sizes: give both stages the same block_size"
            )
        heads = max(self.indices.shape[1], other.indices.shape[1])
        return to_heads(self.indices, heads), to_heads(other.indices, heads), heads

    def _listed(self, indices: Tensor, heads: int) -> "Blocks":
        indices = indices.sort(-1).values
        return Blocks((indices < self.n).sum(-1, dtype=torch.int32), indices, self.size, self.n)


@dataclass(frozen=True, eq=False, repr=False)
class Plan(ByValue):
    """The pairs that are computed: None keeps all, `Plan()` is dense. Tokens are chosen first, then blocks of them.

    Two plans are equal if they hold the same lists; `plan == Plan()` never waits for a device.
    """

    queries: Tokens | None = None
    keys: Tokens | None = None
    blocks: Blocks | None = None
    fill: Fill | None = None  # the output of dropped queries; None is Zeros()
    dense_last: int = 0  # number of last queries that attend densely, whatever else the plan says

    def __repr__(self) -> str:
        whole = super().__repr__()
        same = self.keys is not None and self.keys is self.queries
        return whole.replace(f"keys={self.keys!r}", "keys=queries") if same else whole

    @property
    def local(self) -> SlidingWindow | None:
        """The fill, if it is a window and the plan drops queries; else None."""
        return self.fill if self.queries is not None and isinstance(self.fill, SlidingWindow) else None

    window = former("window", "local")

    def head(self, h: int, heads: int) -> "Plan":
        """Return the plan of query head `h` of `heads` alone."""
        tokens = lambda t: t and Tokens(one_head(t.idx, h, heads), t.n, t.full)  # noqa: E731
        b = self.blocks
        blocks = b and Blocks(one_head(b.counts, h, heads), one_head(b.indices, h, heads), b.size, b.n)
        queries = tokens(self.queries)
        return Plan(
            queries, queries if self.keys is self.queries else tokens(self.keys), blocks, self.fill, self.dense_last
        )

    def compress(self, problem: Problem) -> Problem:
        """Return the shorter problem of the kept tokens."""
        p = replace(problem, **self.hints(problem))
        if t := self.queries:
            p = replace(p, q=t.gather(p.q, 0), q_pos=t.gather(p.q_pos, PAD))
        if t := self.keys:
            k_pos = p.q_pos if self.pairs_slots(problem) else t.gather(p.k_pos, PAD)
            p = replace(p, k=t.gather(p.k, 0), v=t.gather(p.v, 0), k_pos=k_pos)
        return p

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, list[int]]:
        """Return the arguments for an operator: indices of queries and keys, block counts and lists, sizes.

        The indices of keys are None if the keys are the queries, and if all keys are kept.
        """
        sizes = []
        for tokens in (self.queries, self.keys):
            sizes += [tokens.n, int(tokens.full)] if tokens else [0, 0]
        sizes += [*self.blocks.size, self.blocks.n] if self.blocks else [0, 0, 0]
        fill = self.fill
        sizes += [fill.window, fill.sinks] if isinstance(fill, SlidingWindow) else [0, 0]
        sizes += [min(self.dense_last, ALL)]
        queries = self.queries.idx if self.queries else None
        keys = self.keys.idx if self.keys and self.keys is not self.queries else None
        counts, indices = (self.blocks.counts, self.blocks.indices) if self.blocks else (None, None)
        return queries, keys, counts, indices, sizes

    @classmethod
    def from_parts(
        cls,
        queries: Tensor | None,
        keys: Tensor | None,
        counts: Tensor | None,
        indices: Tensor | None,
        sizes: Sequence[int],
    ) -> "Plan":
        """Build the plan whose `parts` these are."""
        n_q, full_q, n_k, full_k, *size, n, window, sinks, dense_last = sizes
        q_tokens = None if queries is None else Tokens(queries, n_q, bool(full_q))
        k_tokens = (q_tokens if n_k else None) if keys is None else Tokens(keys, n_k, bool(full_k))
        blocks = None if counts is None or indices is None else Blocks(counts, indices, (size[0], size[1]), n)
        fill = SlidingWindow(window, sinks) if window else None
        return cls(q_tokens, k_tokens, blocks, fill, dense_last)

    def pairs_slots(self, problem: Problem) -> bool:
        """Return whether each slot of the compressed problem is known to hold the query and the key of one token."""
        return self.queries is self.keys and problem.q_pos is problem.k_pos

    def hints(self, problem: Problem) -> dict[str, Any]:
        """Return `queries_last`, `full` and `gapless` of the compressed problem, without a look at positions."""
        alike = self.queries is self.keys and (self.queries is None or problem.q.shape[2] == problem.k.shape[2])
        full = all(t is None or t.full for t in (self.queries, self.keys))
        every = self.queries is None and self.keys is None
        return dict(
            queries_last=problem.queries_last and alike,
            full=problem.full and full,
            gapless=problem.gapless and every,
        )

    def decompress(self, out: Output) -> Output:
        """Return the output at full length: 0 for dropped queries, lse -inf. `fill_in` adds the fill."""
        if t := self.queries:
            out = Output(t.scatter(out.o, 0.0), t.scatter(out.lse, float("-inf")))
        return out

    def fill_in(self, problem: Problem, out: Output, rows: Output) -> Output:
        """Return `out` with the rows of the dropped queries taken from `rows`."""
        dropped = to_heads(self.dropped(problem), problem.q.shape[1])
        return Output(torch.where(dropped[..., None], rows.o, out.o), torch.where(dropped, rows.lse, out.lse))

    def dropped(self, problem: Problem) -> Bool[Tensor, "B _h Q"]:
        """Return the mask of the queries that get the fill."""
        real = problem.q_pos != PAD
        if self.queries is None:
            return torch.zeros_like(real)
        dropped = ~self.queries.kept() & real
        return dropped & ~self.last(problem) if self.dense_last else dropped

    def last(self, problem: Problem) -> Bool[Tensor, "B _h Q"]:
        """Return the mask of the `dense_last` queries; padding does not count."""
        end, Q = problem.lengths()[0], problem.q.shape[2]
        slot = torch.arange(Q, device=problem.q.device).expand(problem.q_pos.shape)
        return (slot >= end - min(self.dense_last, Q)) & (slot < end)

    def then(self, inner: "Plan") -> "Plan":
        """Return the plan that applies self, then `inner` to what self keeps; all dropped queries get the last fill.

        Raises ValueError for tokens after blocks, and for an inner plan with `dense_last`: those queries must also see
        the keys that self drops.
        """
        if self.blocks and (inner.queries or inner.keys):
            raise ValueError(
                "stages: tokens chosen after blocks; a plan chooses tokens first, then blocks of kept tokens: "
                "move the token stage before the block stage"
            )
        if inner.dense_last and self != Plan():
            raise ValueError(
                f"dense_last: got {inner.dense_last} in an inner plan; allowed is 0 there, because the last queries "
                "must also see keys that earlier stages dropped: set it once, in the Decompress of the whole pipeline"
            )
        both = lambda a, b, join: b if a is None else a if b is None else join(a, b)  # noqa: E731
        queries = both(self.queries, inner.queries, Tokens.then)
        alike = self.queries is self.keys and inner.queries is inner.keys  # then so are the two here
        return Plan(
            queries,
            queries if alike else both(self.keys, inner.keys, Tokens.then),
            both(self.blocks, inner.blocks, Blocks.__and__),
            inner.fill or self.fill,
            inner.dense_last or self.dense_last,
        )

    def pairs(self, problem: Problem, rows: Tensor | None = None) -> Bool[Tensor, "B H R K"]:
        """Return the mask of the pairs that the plan computes, for all queries or for the query indices `rows` [R].

        It shares no code with `compress`, so that each can check the other.
        """
        H, Q = problem.q.shape[1], problem.q.shape[2]
        rows = torch.arange(Q, device=problem.q.device) if rows is None else rows
        pairs = problem.visible(rows)
        if self.keys:
            pairs = pairs & to_heads(self.keys.kept(), H)[..., None, :]
        if self.blocks:
            i = _block_of(self.queries, Q, H, self.blocks.size[0], problem.q.device)[..., rows]
            j = _block_of(self.keys, pairs.shape[3], H, self.blocks.size[1], problem.q.device)
            b = torch.arange(pairs.shape[0], device=problem.q.device)[:, None, None, None]
            h = torch.arange(H, device=problem.q.device)[:, None, None]
            pairs = pairs & to_heads(self.blocks.mask(), H)[b, h, i[..., :, None], j[..., None, :]]
        if self.queries:
            filled = (self.fill or Zeros()).pairs(problem, rows)
            pairs = torch.where(to_heads(self.queries.kept(), H)[..., rows, None], pairs, filled)
        if self.dense_last:
            last = to_heads(self.last(problem), H)[..., rows, None]
            pairs = torch.where(last, problem.visible(rows), pairs)
        return pairs

    def check(self, problem: Problem, contents: bool = False) -> None:
        """Raise ValueError, naming the part, if shapes, sizes, dtypes or devices do not fit the problem.

        With `contents` check every index and count too, which waits for the device.
        """
        check_count("plan.dense_last", self.dense_last, 0)
        Q, K = problem.q.shape[2], problem.k.shape[2]
        for name, t, n in (("queries", self.queries, Q), ("keys", self.keys, K)):
            if t is not None:
                if t.n != n:
                    raise ValueError(f"plan.{name}: chosen out of {t.n} tokens, but there are {n}: decide anew")
                _check_indices(f"plan.{name}.idx", t.idx, 3, t.n, problem, contents)
        if b := self.blocks:
            Q, K = (t.idx.shape[-1] if t else n for t, n in ((self.queries, Q), (self.keys, K)))
            for size in b.size:
                check_size("plan.blocks.size", size)
            grid = -(-Q // b.size[0]), -(-K // b.size[1])
            if (b.indices.shape[2], b.n) != grid or b.counts.shape != b.indices.shape[:3]:
                raise ValueError(
                    f"plan.blocks: got lists {tuple(b.indices.shape)} and counts {tuple(b.counts.shape)} for {b.n} key "
                    f"blocks of {b.size}; {Q} queries and {K} keys have {grid[0]} query and {grid[1]} key blocks: "
                    "decide anew"
                )
            _check_indices("plan.blocks.indices", b.indices, 4, b.n, problem, contents)
            if contents and not torch.equal((b.indices < b.n).sum(-1), b.counts):
                raise ValueError("plan.blocks.counts: not the number of blocks in each list: build them with Blocks.of")

    def work(self, problem: Problem) -> Int[Tensor, "B H"]:
        """Count the pairs that the plan computes, without a mask, so at any length."""
        if self.dense_last:
            last = self.last(problem)
            others = replace(problem, q_pos=problem.q_pos.masked_fill(last, PAD), queries_last=False, full=False)
            seen = (problem.reach() - problem.start()) * to_heads(last, problem.reach().shape[1])
            return replace(self, dense_last=0).work(others) + to_heads(seen.sum(-1), problem.q.shape[1])
        thin = replace(problem, q=problem.q[..., :1], k=problem.k[..., :1], v=problem.v[..., :1])
        H, short = problem.q.shape[1], self.compress(thin)  # positions are all that counts
        total = self._before(to_heads(short.reach(), H))
        if short.sliding_window is not None:
            total = total - self._before(to_heads(short.start(), H))
        if self.local:
            total = total + (to_heads(self.local.counts(problem), H) * to_heads(self.dropped(problem), H)).sum(-1)
        return total.expand(problem.q.shape[:2])

    def _before(self, end: Int[Tensor, "B H S"]) -> Int[Tensor, "B H"]:
        """Count the pairs of each head that have a key slot before the `end` of their row and are in a block."""
        if self.blocks is None:
            return end.sum(-1)
        m, n = self.blocks.size
        lists = to_heads(self.blocks.indices, end.shape[1])
        start = torch.where(lists < self.blocks.n, lists * n, PAD - n)  # [B, H, I, W], first key of each block
        rows = torch.nn.functional.pad(end, (0, -end.shape[2] % m)).unflatten(2, (-1, m))  # [B, H, I, m]
        real = (rows > 0).sum(-1, keepdim=True)
        least = rows.masked_fill(rows == 0, PAD).amin(-1, keepdim=True)
        whole = (start + n <= least) & (real > 0)  # every row that sees a key sees all of the block
        total = (whole.sum(-1, keepdim=True) * real * n).sum((-1, -2))
        part = (~whole & (start < rows.amax(-1, keepdim=True))).nonzero(as_tuple=True)  # about one in each list
        some = (rows[part[:3]] - start[part][:, None]).clamp(0, n).sum(-1)
        return total.index_put(part[:2], some, accumulate=True)

    def density(self, problem: Problem) -> float:
        """Return the pairs computed as part of those of dense attention, in [0, 1], over all heads and sequences."""
        return (self.work(problem).sum() / Plan().work(problem).sum()).item()

    def kept(self, problem: Problem) -> float:
        """Return the part of the queries that is kept, in [0, 1], over all heads and sequences."""
        real = (problem.q_pos != PAD).float().mean()
        return (1 - self.dropped(problem).float().mean() / real).item()


def _check_indices(name: str, idx: Tensor, rank: int, n: int, problem: Problem, contents: bool) -> None:
    (B, H), G = problem.q.shape[:2], problem.k.shape[1]
    if idx.dtype != torch.int32 or idx.device != problem.q.device:
        raise ValueError(
            f"{name}: got {idx.dtype} on {idx.device}; allowed is int32 on the device of q, {problem.q.device}: "
            "convert it"
        )
    if idx.ndim != rank or idx.shape[0] != B or idx.shape[1] not in (1, G, H):
        raise ValueError(
            f"{name}: got shape {tuple(idx.shape)}; allowed are {rank} axes, batch {B}, and 1, {G} or {H} heads: "
            "expand or decide anew"
        )
    if contents and not (((idx >= 0) & (idx <= n)).all() and ((idx.diff() > 0) | (idx[..., 1:] == n)).all()):
        raise ValueError(
            f"{name}: got an index out of range or out of order; allowed are 0 to {n - 1}, ascending without repeats, "
            f"then {n} as padding: build it with Tokens.of or Blocks.of"
        )


def _block_of(tokens: Tokens | None, n: int, H: int, size: int, device: torch.device) -> Int[Tensor, "B H n"]:
    """Return the block of each original token, counted in kept tokens."""
    if tokens is None:
        return (torch.arange(n, device=device) // size).expand(1, H, n)
    rank = to_heads(tokens.kept(), H).cumsum(-1) - 1
    return rank.clamp(min=0) // size
