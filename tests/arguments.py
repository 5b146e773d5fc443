"""Arguments to try every op on: a method for each op, which returns some, of any seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from strategies import randn
from torch import Tensor

from sparsekit import Blocks, Output, Plan, Problem, SlidingWindow, Tokens, dispatch
from sparsekit.problem import PAD

WHERE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Arguments:
    """For problems of B sequences, H query heads, G key/value heads, N tokens, head dim D, blocks of M tokens."""

    seed: int = 0
    B: int = 2
    H: int = 4
    G: int = 2
    N: int = 24
    D: int = 8
    M: int = 4

    @classmethod
    def of(cls, seed: int) -> "Arguments":
        """Return those of other shapes for each seed."""
        draw = Random(seed)
        G = draw.choice([1, 2])
        shape = dict(B=draw.choice([1, 2]), H=G * draw.choice([1, 2, 3]), G=G, N=draw.randrange(9, 34))
        return cls(seed, **shape, D=draw.choice([4, 8, 16]), M=draw.choice([3, 4, 8]))

    def rand(self, i: int, *shape: int) -> Tensor:
        return randn(1000 * self.seed + i, *shape, dtype=torch.float32).to(WHERE)

    def ints(self, values: Any) -> Tensor:
        return torch.tensor(values, device=WHERE)

    def problem(self, window: int | None = None, padded: bool = False) -> Problem:
        B, H, G, N, D = self.B, self.H, self.G, self.N, self.D
        p = Problem.of(self.rand(0, B, H, N, D), self.rand(1, B, G, N, D), self.rand(2, B, G, N, 6), window=window)
        if padded:
            pos = p.q_pos.clone()
            pos[0, :, -3:] = PAD
            p = replace(p, q_pos=pos, k_pos=pos.clone(), full=False)
        return p

    def plans(self) -> list[Plan]:
        """All pairs, tokens of either side or both, alike or not, blocks, and all at once."""
        B, H, G, N, M = self.B, self.H, self.G, self.N, self.M
        some = Tokens.of(torch.arange(N, device=WHERE).remainder(3).bool().expand(B, 1, N))
        ragged = Tokens.of((self.rand(3, B, G, N) > 0) | (torch.arange(N, device=WHERE) == N - 1))
        of = lambda i: Blocks.of(self.rand(4, B, H, -(-i // M), -(-i // M)) > -0.3, (M, M))  # noqa: E731
        dense, short = of(N), of(some.idx.shape[-1])
        return [
            Plan(), Plan(blocks=dense), Plan(ragged), Plan(keys=ragged), Plan(some, some, short), Plan(some, ragged),
        ]  # fmt: skip

    def filled(self) -> Plan:
        return Plan(self.plans()[2].queries, fill=SlidingWindow(3, sinks=1))

    def scattered(self, plan: Plan) -> tuple[Problem, Plan, Output]:
        p = self.problem()
        kept = dispatch.run("gather_tokens", WHERE, p, plan)
        return p, plan, dispatch.run("attend", WHERE, kept, Plan(blocks=plan.blocks))

    def pattern(self) -> tuple:
        J = -(-self.N // self.M)
        of = lambda i: self.rand(5 + i, self.B, self.H, J) > 0  # noqa: E731
        own = torch.arange(J, device=WHERE).expand(self.B, self.H, J)
        extra = self.rand(7, self.B, self.H, J, J) > 1
        return of(0), of(1), own, own.clone(), extra, (self.M, self.M)

    def attend(self) -> Sequence[tuple]:
        return [(self.problem(w, pad), plan) for plan in self.plans() for w, pad in ((None, False), (7, True))]

    def block_means(self) -> Sequence[tuple]:
        x, pos = self.rand(0, self.B, 1, self.N, self.D).half(), self.rand(1, self.B, self.H, self.N).int()
        return [(self.problem().k, self.problem().k_pos, 5), (x, pos, 4)]

    def coverage_count(self) -> Sequence[tuple]:
        scores, mass = self.rand(0, self.B, self.H, self.N).abs(), self.rand(1, self.B, 1).abs()
        return [(scores, mass, largest) for largest in (True, False)]

    coverage_mask = coverage_count

    def gather_tokens(self) -> Sequence[tuple]:
        return [(self.problem(padded=pad), plan) for plan in self.plans() for pad in (False, True)]

    def query_aware(self) -> Sequence[tuple]:
        pooled = self.rand(2, self.B, self.H, 6).softmax(-1)
        given = self.rand(0, self.B, self.H, self.D), self.rand(1, self.B, self.G, 6, self.D), pooled
        return [(*given, n, 0.3, 0.4) for n in (torch.tensor(5), torch.full((self.B, self.H, 1), 4, device=WHERE))]

    def scatter_tokens(self) -> Sequence[tuple]:
        return [self.scattered(plan) for plan in (*self.plans(), self.filled())]

    def seen_blocks(self) -> Sequence[tuple]:
        return [(self.plans()[1].blocks, self.problem(padded=pad).reach()) for pad in (False, True)]

    def select_tokens(self) -> Sequence[tuple]:
        keep = self.ints([[3], [9]])[: self.B]
        return [(self.rand(0, self.B, h, self.N), keep.expand(self.B, h)) for h in (1, self.H)]

    def sliding_window(self) -> Sequence[tuple]:
        return [(self.problem(w), self.filled()) for w in (None, 7)]

    def threshold_blocks(self) -> Sequence[tuple]:
        return [(self.problem(w, pad), 0.5, 1, 3, self.M) for w, pad in ((None, False), (7, True))]

    def token_budget(self) -> Sequence[tuple]:
        votes = self.rand(0, self.B, self.N).abs()
        return [(votes, 0.4, most) for most in (torch.tensor(9), self.ints([3, 20])[: self.B])]

    def token_votes(self) -> Sequence[tuple]:
        scores, N = self.rand(0, self.B, self.H, self.N).abs(), self.N
        ragged = (self.ints([[[n - 4]], [[n - 2]]])[: self.B] for n in (N - 4, N))
        return [(scores, *lengths, 3, 2) for lengths in ((torch.tensor(N - 4), torch.tensor(N)), tuple(ragged))]

    def topk_mask(self) -> Sequence[tuple]:
        scores, few = self.rand(0, self.B, self.H, self.N), self.ints([[3], [0]])[: self.B]
        return [(scores, few.expand(self.B, self.H)), (scores[:, 0] > 0, self.ints([5, 5])[: self.B])]

    def vertical_slash_blocks(self) -> Sequence[tuple]:
        *given, _, size = self.pattern()
        return [self.pattern(), (*given, None, size)]

    def window_scores(self) -> Sequence[tuple]:
        return [(self.problem(w, pad), 5, d) for w, pad, d in ((None, False, True), (7, True, False))]


def tensors(answer: Any) -> list[Tensor]:
    """Return the tensors of an answer, one after the other."""
    if isinstance(answer, Tensor):
        return [answer]
    values = answer if isinstance(answer, tuple) else vars(answer).values()
    return [x for x in values if isinstance(x, Tensor)]


def doubled(x: Any) -> Any:
    """Return an argument with its numbers in float64."""
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, Problem):
        return replace(x, q=x.q.double(), k=x.k.double(), v=x.v.double())
    return Output(x.o.double(), x.lse.double()) if isinstance(x, Output) else x
