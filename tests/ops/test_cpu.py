"""Tests beyond the laws' small float64 problems: low precision, long inputs, inputs in pieces, odd layouts."""

import importlib
from dataclasses import replace

import pytest
import torch
from closeness import error, no_worse, plain_torch, same
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import covering, plans, problems, randn, tries
from torch.nn.functional import scaled_dot_product_attention

import sparsekit as sk
from sparsekit import Blocks, Plan, Problem, SlidingWindow, Tokens, attend, dispatch, oracle
from sparsekit.problem import PAD

FAST = [b for b in dispatch.AUTO["cpu"] if b != "reference"]
# layouts: contiguous, [B, L, H, D] transposed as in transformers, and with a stride in the head dim
LAYOUTS = {
    "rows": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns": lambda x: x.mT.contiguous().mT,
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # the truth is float64
LENGTHS = [(389, 389), (256, 256), (130, 389), (1, 129)]  # of queries and keys
DIMS = [(64, 64), (40, 24)]  # of keys and values


def some(seed, L, keep, H, B=2):
    order = torch.rand(B, H, L, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return Tokens(order[..., : max(int(keep * L), 1)].sort(-1).values.int(), L)


def tiles(seed, H, Q, K, size, chance, B=2):
    grid = (B, H, -(-Q // size), -(-K // size))
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < chance
    mask[..., -grid[2] :].diagonal(dim1=-2, dim2=-1).fill_(True)
    return Blocks.of(mask, (size, size))


def kinds(H, Q, K, B=2):
    """Yield plans that together reach every branch of the kernels."""
    t = some(1, K, 0.4, H, B)
    yield "dense", Plan()
    yield "blocks", Plan(blocks=tiles(2, H, Q, K, 32, 0.3, B))
    yield "blocks alike for all heads", Plan(blocks=tiles(3, 1, Q, K, 48, 0.5, B))
    if Q == K:
        yield "tokens", Plan(t, t, fill=SlidingWindow(20, sinks=3))
        yield "tokens and blocks", Plan(t, t, tiles(4, H, t.idx.shape[-1], t.idx.shape[-1], 32, 0.4, B))
    yield "other keys than queries", Plan(some(5, Q, 0.5, 2, B), t, fill=SlidingWindow(200, sinks=0))


@pytest.mark.parametrize("backend", dispatch.AUTO["cpu"])
@pytest.mark.parametrize("dtype,lengths,dims,causal,layout", covering(2, DTYPES, LENGTHS, DIMS, [True, False], LAYOUTS))
def test_the_error_is_that_of_plain_torch(backend, dtype, lengths, dims, causal, layout):
    (Q, K), (D, Dv) = lengths, dims
    shapes = [(4, Q, D), (2, K, D), (2, K, Dv)]
    q, k, v = (LAYOUTS[layout](randn(i, 2, *s, dtype=torch.float32).to(dtype)) for i, s in enumerate(shapes))
    p = Problem.of(q, k, v, causal)
    for name, plan in kinds(4, Q, K):
        truth, plain = oracle(p, plan), plain_torch(p, plan)
        for mode in ("gather", "indexed"):
            out = attend(p, plan, backend=backend, compress=mode)
            assert out.o.dtype == dtype and out.lse.dtype == torch.promote_types(dtype, torch.float32), name
            no_worse(out.o, plain.o, truth.o, dtype)
            finite = truth.lse.isfinite()
            assert torch.equal(out.lse.isfinite(), finite), name
            no_worse(out.lse[finite], plain.lse[finite], truth.lse[finite], torch.float32)


@pytest.mark.parametrize("backend", FAST)
@tries(60)
@given(data=st.data())
def test_work_cut_into_pieces_gives_the_same(backend, data):
    """Backends cut long inputs into pieces; a monkeypatch makes the pieces small, so that small inputs are cut too."""
    p = data.draw(problems())
    plan = data.draw(plans(p))
    with pytest.MonkeyPatch.context() as patch:
        for op in ("attend", "sliding_window"):
            module = importlib.import_module(f"{dispatch.BACKENDS[backend]}.{op}")
            for name, size in {"RUN": 3, "GATHERED": 4, "MOST": 6, "WIDE": 4, "WIDE_RUN": 3}.items():
                if hasattr(module, name):
                    patch.setattr(module, name, size)
        same(attend(p, plan, backend=backend), oracle(p, plan))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sinks", [0, 5])
def test_a_window_is_wide_or_narrow_alike(backend, sinks, monkeypatch):
    """The sequences are one without padding, one with padding, and one of padding only."""
    module = importlib.import_module(f"{dispatch.BACKENDS[backend]}.sliding_window")
    p = Problem.of(*(randn(i, 3, h, 300, 16) for i, h in enumerate((4, 2, 2))))
    pos = p.q_pos.masked_fill(torch.arange(300) >= torch.tensor([300, 170, 0])[:, None, None], PAD)
    chosen = some(1, 300, 0.3, 4, B=3)
    plan = Plan(chosen, chosen, fill=SlidingWindow(150, sinks=sinks))
    for problem in (p, replace(p, q_pos=pos, k_pos=pos, full=False)):
        for wide in (1, 1000):
            monkeypatch.setattr(module, "WIDE", wide, raising=False)
            same(attend(problem, plan, backend=backend), oracle(problem, plan))


@pytest.mark.parametrize("backend", FAST)
def test_inputs_are_left_alone_and_grouped_heads_are_read_in_place(backend):
    q, k, v = (randn(i, 1, h, 300, 64, dtype=torch.float32) for i, h in enumerate((8, 2, 2)))
    before = [x.clone() for x in (q, k, v)]
    plan = Plan(blocks=Blocks.of(torch.ones(1, 1, 5, 5, dtype=torch.bool), (64, 64)))
    out = attend(Problem.of(q, k, v), plan, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))
    assert error(out.o, scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)) < 1e-6


def test_auto_takes_the_fast_backend_on_a_cpu():
    q = randn(0, 1, 1, 8, 4)
    assert dispatch.choose("attend", "cpu", Problem.of(q, q, q), Plan()) == "cpu"
    filled = Plan(queries=Tokens.of(torch.ones(1, 1, 8, dtype=torch.bool)), fill=SlidingWindow(2, sinks=0))
    assert dispatch.choose("sliding_window", "cpu", Problem.of(q, q, q), filled) == "cpu"
    assert sk.why_not("cpu", "sliding_window", Problem.of(q, q, q), Plan()) is not None


@tries(40)
@given(
    data=st.data(), window=st.integers(1, 9), step=st.integers(1, 5), rows=st.integers(1, 4), diagonals=st.booleans()
)
def test_scores_of_a_few_keys_and_queries_at_a_time_are_the_definition(data, window, step, rows, diagonals):
    p = data.draw(problems(most=14))
    assume(dispatch.why_not("cpu", "window_scores", p, window, diagonals) is None)
    expected = dispatch.run("window_scores", "cpu", p, window, diagonals, backend="reference")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sparsekit_kernels.cpu.window_scores.STEP", step)
        patched.setattr("sparsekit_kernels.cpu.window_scores.ROWS", rows)
        found = dispatch.run("window_scores", "cpu", p, window, diagonals, backend="cpu")
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_scores_of_rows_without_a_number_are_those_of_the_definition():
    q, k = randn(0, 1, 2, 9, 4), randn(1, 1, 1, 9, 4)
    q[0, 1, 7] = torch.nan
    p = sk.Problem.of(q, k, k)
    found, expected = (dispatch.run("window_scores", "cpu", p, 4, True, backend=name) for name in ("cpu", "reference"))
    assert found.isfinite().all() and torch.equal(found[:, :, 1], expected[:, :, 1])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
