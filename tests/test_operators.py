"""Every op is an operator: lawful, the same answer, and held by a compiled stage of one's own."""

from dataclasses import replace

import pytest
import torch
from strategies import randn
from torch.library import opcheck

from sparsekit import Blocks, NoBackendError, Output, Plan, Problem, SlidingWindow, Tokens, dispatch, operators
from sparsekit.problem import PAD

B, H, G, N, D, M = 2, 4, 2, 24, 8, 4  # M tokens a block
WHERE = "cuda" if torch.cuda.is_available() else "cpu"


def rand(seed, *shape):
    return randn(seed, *shape, dtype=torch.float32).to(WHERE)


def ints(values):
    return torch.tensor(values, device=WHERE)


def problem(window=None, padded=False, heads=H):
    p = Problem.of(rand(0, B, heads, N, D), rand(1, B, G, N, D), rand(2, B, G, N, 6), window=window)
    if padded:
        pos = p.q_pos.clone()
        pos[0, :, -3:] = PAD
        p = replace(p, q_pos=pos, k_pos=pos.clone(), full=False)
    return p


def plans():
    """All pairs, tokens of either side or both, alike or not, blocks, and all at once."""
    some = Tokens.of(torch.arange(N, device=WHERE).remainder(3).bool().expand(B, 1, N))
    ragged = Tokens.of((rand(3, B, G, N) > 0) | (torch.arange(N, device=WHERE) == N - 1))
    dense, short = (Blocks.of(rand(4, B, H, i, i) > -0.3, (M, M)) for i in (N // M, some.idx.shape[-1] // M))
    return [
        Plan(), Plan(blocks=dense), Plan(ragged), Plan(keys=ragged), Plan(some, some, short), Plan(some, ragged),
    ]  # fmt: skip


def filled():
    return Plan(plans()[2].queries, fill=SlidingWindow(3, sinks=1))


def scattered(plan):
    p = problem()
    return (
        p,
        plan,
        dispatch.run("attend", WHERE, dispatch.run("gather_tokens", WHERE, p, plan), Plan(blocks=plan.blocks)),
    )


def pattern(seed=5):
    J = N // M
    of = lambda i: rand(seed + i, B, H, J) > 0  # noqa: E731
    own = torch.arange(J, device=WHERE).expand(B, H, J)
    return of(0), of(1), own, own.clone(), rand(seed + 2, B, H, J, J) > 1, (M, M)


CASES = {
    "attend": lambda: [(problem(w, pad), plan) for plan in plans() for w, pad in ((None, False), (7, True))],
    "block_means": lambda: [(problem().k, problem().k_pos, 5), (rand(0, B, 1, N, D).half(), rand(1, B, H, N).int(), 4)],
    "coverage_count": lambda: [(rand(0, B, H, N).abs(), rand(1, B, 1).abs(), large) for large in (True, False)],
    "coverage_mask": lambda: [(rand(0, B, H, N).abs(), rand(1, B, 1).abs(), large) for large in (True, False)],
    "gather_tokens": lambda: [(problem(padded=pad), plan) for plan in plans() for pad in (False, True)],
    "query_aware": lambda: [
        (rand(0, B, H, D), rand(1, B, G, 6, D), rand(2, B, H, 6).softmax(-1), blocks, 0.3, 0.4)
        for blocks in (torch.tensor(5), torch.full((B, H, 1), 4, device=WHERE))
    ],
    "scatter_tokens": lambda: [scattered(plan) for plan in (*plans(), filled())],
    "seen_blocks": lambda: [(plans()[1].blocks, problem(padded=pad).reach()) for pad in (False, True)],
    "select_tokens": lambda: [(rand(0, B, h, N), ints([[3], [9]]).expand(B, h)) for h in (1, H)],
    "sliding_window": lambda: [(problem(w), filled()) for w in (None, 7)],
    "threshold_blocks": lambda: [(problem(w, pad), 0.5, 1, 3, M) for w, pad in ((None, False), (7, True))],
    "token_budget": lambda: [(rand(0, B, N).abs(), 0.4, most) for most in (torch.tensor(9), ints([3, 20]))],
    "token_votes": lambda: [
        (rand(0, B, H, N).abs(), *lengths, 3, 2)
        for lengths in (
            (torch.tensor(20), torch.tensor(N)),
            (ints([[[16]], [[18]]]), ints([[[20]], [[N]]])),
        )
    ],
    "topk_mask": lambda: [(rand(0, B, H, N), ints([[3], [0]])), (rand(0, B, N) > 0, ints([5, 5]))],
    "vertical_slash_blocks": lambda: [pattern(), (*pattern()[:4], None, (M, M))],
    "window_scores": lambda: [(problem(w, pad), 5, d) for w, pad, d in ((None, False, True), (7, True, False))],
}  # fmt: skip


def tensors(answer):
    """The tensors of an answer, one after the other."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    values = answer if isinstance(answer, tuple) else vars(answer).values()
    return [x for x in values if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("op", dispatch.ops())
def test_it_is_a_lawful_operator_with_the_same_answer(op):
    operator = getattr(torch.ops.sparsekit, op).default
    for args in CASES[op]():
        given = operators.flat(*args)
        opcheck(operator, tuple(given))
        got, expected = tensors(operator(*given)), tensors(dispatch.run(op, WHERE, *args))
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.is_contiguous()
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_plan_of_another_problem_is_refused():
    p = Problem.of(*(rand(i, B, G, N + 1, D) for i in range(3)))
    with pytest.raises(ValueError, match="plan.queries: chosen out of 24 tokens"):
        torch.ops.sparsekit.attend(*operators.flat(p, filled()))
    with pytest.raises(NoBackendError, match="not a sliding window"):
        torch.ops.sparsekit.sliding_window(*operators.flat(p, Plan()))


class Operators:
    """The ops as operators, put together again as the plain functions answer."""

    def __getattr__(self, op):
        def call(*args):
            answer = getattr(torch.ops.sparsekit, op)(*operators.flat(*args))
            if op == "select_tokens":
                return Tokens(answer, args[0].shape[-1])
            if op == "gather_tokens":
                q, k, v, q_pos, k_pos = answer
                return replace(args[0], q=q, k=k, v=v, q_pos=q_pos, k_pos=k_pos, **args[1].known(args[0]))
            return Output(*answer) if op in ("attend", "scatter_tokens") else answer

        return call


class Plain:
    """The ops as pipelines call them."""

    def __getattr__(self, op):
        return lambda *args: dispatch.run(op, WHERE, *args)


def own_pipeline(ops, q, k, v):
    """Token coverage, step by step."""
    p, K = Problem.of(q, k, v), k.shape[2]
    number = lambda n: torch.tensor(n)  # noqa: E731
    votes, mean = ops.token_votes(ops.window_scores(p, 4, False)[0], number(K - 4), number(K), 3, 2)
    drop = ops.token_budget(mean, 0.3, number(K - 8))
    tokens = ops.select_tokens(votes, (K - drop)[:, None].expand(votes.shape[:2]))
    plan = Plan(tokens, tokens, fill=SlidingWindow(3, sinks=0))
    return ops.scatter_tokens(p, plan, ops.attend(ops.gather_tokens(p, plan), Plan()))


def test_a_pipeline_of_operators_compiles_without_a_break():
    def layer(q, k, v):
        out = own_pipeline(Operators(), q * 2, k, v)
        return out.o.mul(0.5), out.lse

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (24, 40, 57):
        q, k, v = rand(0, B, H, length, D), rand(1, B, G, length, D), rand(2, B, G, length, 6)
        expected = own_pipeline(Plain(), q * 2, k, v)
        o, lse = compiled(q, k, v)
        torch.testing.assert_close(o, expected.o.mul(0.5))
        torch.testing.assert_close(lse, expected.lse)
