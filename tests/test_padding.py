"""Tests that a row alone equals the row in a batch: padding and other sequences change nothing in it."""

import pytest
import torch
from closeness import same
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from strategies import EXAMPLES, SEEDS, named, plans, problems, randn

import sparsekit as sk
from sparsekit import Output, Pipeline, Problem, SlidingWindow, attend, dispatch, oracle
from sparsekit.break_even import worth_it
from sparsekit.problem import PAD, to_heads

WITH_SINKS = st.builds(SlidingWindow, st.integers(1, 9), st.integers(0, 6))


@st.composite
def batches(draw, causal=None, most=20):
    """Draw a batch of sequences of different lengths with noise in the padding, and each sequence alone."""
    causal = draw(st.booleans()) if causal is None else causal
    B, G = draw(st.integers(2, 3)), draw(st.sampled_from([1, 2]))
    H = G * draw(st.sampled_from([1, 2]))
    keys = draw(st.lists(st.integers(1, most), min_size=B, max_size=B))
    square = draw(st.booleans())
    queries = [n if square else draw(st.integers(1, n)) for n in keys]
    Q, K = (max(lengths) + draw(st.integers(0, 2)) for lengths in (queries, keys))
    K = max(Q, K)
    q, k, v = (randn(draw(SEEDS), B, h, n, d) for h, n, d in ((H, Q, 4), (G, K, 4), (G, K, 3)))
    n_q, n_k = (torch.tensor(lengths)[:, None, None] for lengths in (queries, keys))
    q_pos, k_pos = (
        torch.where(torch.arange(n) < real, torch.arange(n) + first, PAD).int()
        for n, real, first in ((Q, n_q, n_k - n_q), (K, n_k, 0 * n_k))
    )
    alone = [
        Problem.of(q[b : b + 1, :, :i], k[b : b + 1, :, :j], v[b : b + 1, :, :j], causal)
        for b, (i, j) in enumerate(zip(queries, keys, strict=True))
    ]
    return Problem(q, k, v, q_pos, k_pos, alone[0].scale, causal), alone


def agree(pipeline, batch, alone):
    """Check that pairs and output of each row equal those of the row alone, and that padding has none."""
    try:
        plan, out = pipeline.run(batch)
    except ValueError as refusal:
        assert type(pipeline.stages[0]).__name__ in str(refusal)
        assume(False)
    pairs = plan.pairs(batch)
    assert torch.equal(plan.work(batch), pairs.sum((-1, -2)))
    same(out, oracle(batch, plan))
    for b, one in enumerate(alone):
        (i, j), (own, answer) = (one.q.shape[2], one.k.shape[2]), pipeline.run(one)
        assert torch.equal(pairs[b : b + 1, :, :i, :j], own.pairs(one)), b
        assert not pairs[b, :, i:].any() and not pairs[b, :, :, j:].any()
        same(Output(out.o[b : b + 1, :, :i], out.lse[b : b + 1, :, :i]), answer)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@settings(max_examples=15)
@given(data=st.data())
def test_a_row_alone_is_the_row_in_a_batch(stage, data):
    batch, alone = data.draw(batches())
    fill = data.draw(WITH_SINKS)
    last = data.draw(st.sampled_from([0, 0, 1, 3, 50]))
    agree(Pipeline([stage, sk.Decompress(fill, dense_last=last)]), batch, alone)


@settings(max_examples=50)
@given(data=st.data())
def test_a_fill_goes_by_the_row(data):
    """Check fills after a stage that drops many tokens, with a block stage and without."""
    batch, alone = data.draw(batches())
    fill = data.draw(WITH_SINKS)
    last = data.draw(st.sampled_from([0, 0, 1, 3]))
    tokens = sk.TokenCoverage(tau=data.draw(st.sampled_from([0.3, 0.9])), voters=1, pool=1, min_tokens=0, sinks=2)
    blocks = [sk.Streaming(1, 2, 2)] if data.draw(st.booleans()) else []
    agree(Pipeline([tokens, *blocks, sk.Decompress(fill, dense_last=last)]), batch, alone)


@settings(max_examples=25)
@given(data=st.data(), sinks=st.integers(0, 4), window=st.integers(1, 6), m=st.integers(1, 4))
def test_a_streaming_band_goes_by_the_row(data, sinks, window, m):
    agree(Pipeline([sk.Streaming(sinks, window, m)]), *data.draw(batches(causal=False)))


@settings(max_examples=25)
@given(data=st.data())
def test_every_backend_leaves_the_padding_out(data):
    batch, _ = data.draw(batches())
    plan = Pipeline([sk.BlockTopK(0.5, 3)])(batch)
    for backend in ("cpu", "reference"):
        same(attend(batch, plan, backend=backend), oracle(batch, plan))


@given(data=st.data(), more=st.integers(-1, 2))
def test_break_even_goes_by_the_longest_sequence(data, more):
    batch, alone = data.draw(batches())
    stages, limit = [sk.Streaming()], max(one.k.shape[2] for one in alone) + more
    assert worth_it(stages, limit, batch) == any(worth_it(stages, limit, one) for one in alone)


@given(data=st.data())
@settings(max_examples=40)
def test_what_a_kernel_leaves_in_rows_that_nobody_reads_is_in_no_answer(data):
    """A kernel may write anything to the padding rows of a problem with `loose` set."""
    problem = data.draw(problems() | batches().map(lambda batch: batch[0]))
    plan, right = data.draw(plans(problem)), dispatch.run
    expected, unread = attend(problem, plan), []

    def careless(op, device, *args, **kwargs):
        out = right(op, device, *args, **kwargs)
        if op == "attend" and args[0].loose:
            unread.append(args[0])
            out.o.masked_fill_((to_heads(args[0].q_pos, out.o.shape[1]) == PAD).unsqueeze(-1), float("nan"))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "run", careless)
        same(attend(problem, plan, compress="gather"), expected)
    event("marked" if unread else "not marked")


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_plain_torch_reads_all_padding_so_all_is_written(backend):
    """`loose` is set before the gather only for kernels, which read tiles."""
    q, k, v = (torch.linspace(-1, 1, h * 63).sin().view(1, h, 9, 7) for h in (2, 1, 1))
    problem, right = Problem.of(q, k, v), dispatch.run
    tokens = sk.Tokens.of(torch.arange(9) < torch.tensor([[[8], [3]]]))

    def careless(op, device, *args, **kwargs):
        out = right(op, device, *args, **kwargs)
        if op == "gather_tokens" and args[0].loose:
            out.v.masked_fill_((out.k_pos == PAD).unsqueeze(-1), float("nan"))
        return out

    plan = sk.Plan(tokens, tokens)
    expected = attend(problem, plan, backend=backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "run", careless)
        same(attend(problem, plan, compress="gather", backend=backend), expected)
