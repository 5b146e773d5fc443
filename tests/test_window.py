"""The laws of a problem with a sliding window: the pairs of any plan, and of those the ones inside."""

from dataclasses import replace

import pytest
import torch
from closeness import same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import EXAMPLES, FILLS, SEEDS, named, plans, problems, tokens, windowed
from torch.nn.functional import scaled_dot_product_attention

import sparsekit as sk
from sparsekit import Plan, Problem, attend, dispatch, oracle
from sparsekit.problem import PAD, to_heads


@given(p=problems(causal=True), window=st.integers(1, 30))
def test_the_oracle_is_torch_attention_under_a_banded_mask(p, window):
    Q, K = p.q.shape[2], p.k.shape[2]
    ones = torch.ones(Q, K, dtype=torch.bool)
    mask = ones.tril(K - Q) & ones.triu(K - Q - window + 1)
    sdpa = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask, enable_gqa=True)
    p = Problem.of(p.q, p.k, p.v, window=window)
    torch.testing.assert_close(oracle(p, Plan()).o, sdpa, atol=1e-9, rtol=1e-9)
    assert (p.window is None) == (window >= K), "one that covers the keys is none"


@settings(max_examples=250)
@given(st.data())
def test_every_backend_computes_the_pairs_inside_the_window(data):
    p = data.draw(windowed())
    plan = data.draw(plans(p))
    truth = oracle(p, plan)
    for backend in ("auto", "cpu", "reference"):
        for mode in ("gather", "indexed"):
            same(attend(p, plan, backend=backend, compress=mode), truth)


@settings(max_examples=250)
@given(st.data())
def test_work_counts_the_pairs_inside_the_window(data):
    p = data.draw(windowed())
    plan = data.draw(plans(p))
    assert torch.equal(plan.work(p), plan.pairs(p).sum((-1, -2)))
    without = replace(p, window=None)
    assert torch.equal(plan.pairs(p), plan.pairs(without) & p.visible()), "the plan, intersected with the window"


@given(data=st.data(), probe=st.integers(1, 9))
def test_window_scores_are_what_the_last_queries_give_the_keys_they_see(data, probe):
    """Of any windowed problem, what a plan leaves of one too: by hand from `visible`, row by row."""
    p = data.draw(windowed())
    kept = data.draw(tokens(p, "q")) if p.q.shape[2] == p.k.shape[2] and data.draw(st.booleans()) else None
    p = Plan(kept, kept).compress(p)
    columns, distances = dispatch.run("window_scores", "cpu", p, probe, True)
    torch.testing.assert_close(columns, dispatch.run("window_scores", "cpu", p, probe)[0])
    seen, (B, H), K = p.visible(), p.q.shape[:2], p.k.shape[2]
    probability = (p.q @ to_heads(p.k, H).mT * p.scale).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    n_q, n_k = (to_heads((pos != PAD).sum(-1), H) for pos in (p.q_pos, p.k_pos))
    expected = torch.zeros(2, B, H, K, dtype=p.q.dtype)
    for b, h in torch.cartesian_prod(torch.arange(B), torch.arange(H)).tolist():
        rows = range(max(0, int(n_q[b, h]) - probe), int(n_q[b, h]))
        for i in rows:
            own = int(n_k[b, h] - n_q[b, h]) + i
            expected[0, b, h] += probability[b, h, i] / len(rows)
            expected[1, b, h, : own + 1] += probability[b, h, i, : own + 1].flip(-1) / len(rows)
    torch.testing.assert_close(columns, expected[0])
    torch.testing.assert_close(distances, expected[1])


@given(p=windowed(), fill=FILLS)
def test_a_fill_counts_its_pairs_inside_the_window(p, fill):
    fill = fill or sk.Zeros()
    counts = to_heads(fill.counts(p), p.q.shape[1])
    assert torch.equal(counts.expand(p.q.shape[:3]), fill.pairs(p).sum(-1))


@given(st.data())
def test_start_and_reach_bound_what_is_visible(data):
    p = data.draw(windowed())
    outer = data.draw(plans(p, fill=False))
    short = outer.compress(p)
    start, reach = (to_heads(x, p.q.shape[1])[..., None] for x in (short.start(), short.reach()))
    slot = torch.arange(short.k.shape[2])
    assert torch.equal(((slot >= start) & (slot < reach)).expand_as(short.visible()), short.visible())


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@settings(max_examples=30)
@given(p=windowed())
def test_no_stage_leaves_a_kept_query_blind(stage, p):
    try:
        plan = stage(p)
    except ValueError as refusal:
        assert type(stage).__name__ in str(refusal)
        assume(False)
    real = to_heads(p.q_pos != PAD, p.q.shape[1])
    kept = to_heads(plan.queries.kept(), p.q.shape[1]) if plan.queries else torch.ones_like(real)
    assert torch.equal(plan.pairs(p).any(-1), kept & real)
    same(attend(p, plan), oracle(p, plan))


@given(p=windowed(), seed=SEEDS)
def test_what_lies_before_the_window_never_changes_the_output(p, seed):
    assume(p.window is not None)
    k, v = p.k.clone(), p.v.clone()
    cut = p.k.shape[2] - p.window  # the last query does not see the keys before it
    noise = torch.randn(p.k[:, :, :cut].shape, generator=torch.Generator().manual_seed(seed), dtype=p.k.dtype)
    k[:, :, :cut], v[:, :, :cut] = noise, 7.0
    before, after = attend(p), attend(replace(p, k=k, v=v))
    last = p.q_pos == p.k.shape[2] - 1
    last = to_heads(last, p.q.shape[1]).expand(p.q.shape[:3])
    assert torch.equal(before.o[last], after.o[last])


def test_a_kernel_without_windows_says_so():
    x = torch.randn(1, 1, 16, 16)
    p, some = Problem.of(x, x, x, window=4), sk.Tokens.of(torch.arange(16).remainder(3).bool().expand(1, 1, 16))
    plan = Plan(some, some, fill=sk.SlidingWindow(2))
    assert "sliding window" in dispatch.why_not("triton", "scatter_tokens", p, plan, attend(p, plan))
    with pytest.raises(sk.NoBackendError, match="sliding window"):
        attend(p, plan, backend="triton")
