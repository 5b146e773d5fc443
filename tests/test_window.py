"""Tests of the laws for problems with a sliding window: a plan computes its pairs that lie inside the window."""

from dataclasses import replace

import pytest
import torch
from closeness import same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import EXAMPLES, FILLS, MODULES, SEEDS, named, plans, problems, randn, tokens, windowed
from torch.nn.functional import scaled_dot_product_attention

import sparsekit as sk
from sparsekit import Plan, Problem, Tokens, attend, dispatch, oracle
from sparsekit.problem import PAD, to_heads
from sparsekit.testing import laws
from sparsekit.testing.laws import lawful


@given(p=problems(causal=True), window=st.integers(1, 30))
def test_the_oracle_is_torch_attention_under_a_banded_mask(p, window):
    Q, K = p.q.shape[2], p.k.shape[2]
    ones = torch.ones(Q, K, dtype=torch.bool)
    mask = ones.tril(K - Q) & ones.triu(K - Q - window + 1)
    sdpa = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask, enable_gqa=True)
    p = Problem.of(p.q, p.k, p.v, sliding_window=window)
    torch.testing.assert_close(oracle(p, Plan()).o, sdpa, atol=1e-9, rtol=1e-9)
    assert (p.sliding_window is None) == (window >= K), "one that covers the keys is none"


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
    without = replace(p, sliding_window=None)
    assert torch.equal(plan.pairs(p), plan.pairs(without) & p.visible()), "the plan, intersected with the window"


@given(data=st.data(), probe=st.integers(1, 9))
def test_window_scores_are_what_the_last_queries_give_the_keys_they_see(data, probe):
    """Compare with `visible`, row by row, also for the shorter problem of a plan."""
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
@settings(max_examples=40)
@given(p=windowed())
def test_a_stage_gives_a_lawful_plan(stage, p):
    laws.gives_a_lawful_plan_inside_a_window(stage, p)


@pytest.mark.parametrize("module", **named(MODULES))
@settings(max_examples=20)
@given(p=windowed(), size=st.integers(1, 6))
def test_the_dense_setting_is_attention_inside_the_window(module, p, size):
    laws.is_dense_inside_a_window_in_its_dense_setting(module.DENSE, p, size)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@settings(max_examples=30)
@given(p=windowed())
def test_a_stage_judges_each_sequence_alone(stage, p):
    """Neither other sequences nor padding change a choice."""
    pairs = lawful(stage, p).pairs(p)
    for b in range(p.q.shape[0]):
        n = int((p.k_pos[b] != PAD).sum())
        m = int((p.q_pos[b] != PAD).sum())
        alone = Problem.of(
            p.q[b : b + 1, :, :m], p.k[b : b + 1, :, :n], p.v[b : b + 1, :, :n], sliding_window=p.sliding_window
        )
        assume(alone.sliding_window is not None or p.sliding_window is None)
        assert torch.equal(stage(alone).pairs(alone), pairs[b : b + 1, :, :m, :n])


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@settings(max_examples=20)
@given(p=windowed(), fill=FILLS)
def test_stages_chain_with_the_nested_meaning(stage, p, fill):
    tokens_ = sk.TokenCoverage(tau=0.4, voters=2, pool=3, min_tokens=1, sinks=2)
    local = sk.Streaming(sinks=1, window=3, block_size=getattr(stage, "block_size", 2))
    for chain in ([tokens_, stage], [stage, local], [some_tokens, stage]):
        try:
            plan = sk.Pipeline([*chain, sk.Decompress(fill or sk.Zeros())])(p)
        except ValueError as refusal:
            assert str(refusal)
            continue
        same(attend(p, plan), oracle(p, plan))
        step = Plan()
        for part in chain:
            after = step.then(part(step.compress(p)))
            assert after.density(p) <= step.density(p) + 1e-6, "density only falls"
            step = after


def some_tokens(p):
    """Drop a third of the tokens even under a window, so that the next stage gets positions with gaps."""
    kept = torch.arange(p.q.shape[2]).remainder(3).bool() | (torch.arange(p.q.shape[2]) == p.q.shape[2] - 1)
    if p.q.shape[2] != p.k.shape[2]:
        return Plan()
    chosen = Tokens.of(kept.expand(p.q.shape[0], 1, -1))
    return Plan(chosen, chosen)


@given(p=windowed(), seed=SEEDS)
def test_no_stage_looks_at_keys_that_none_of_its_probe_sees(p, seed):
    """No stage drops a token that its probe does not see."""
    assume(p.sliding_window is not None)
    coverage = sk.TokenCoverage(tau=0.7, voters=1, pool=1, min_tokens=0, sinks=2)
    assert coverage(p) == Plan()
    assume(p.full)
    probe = 2
    unseen = p.k.shape[2] - min(probe, p.q.shape[2]) - p.sliding_window + 1
    assume(unseen > 0)
    k = p.k.clone()
    k[:, :, :unseen] = randn(seed, *k[:, :, :unseen].shape)
    for stage in (sk.FlexPrefill(gamma=0.6, tau=0.0, block_size=probe),):
        assert torch.equal(stage(p).pairs(p), stage(replace(p, k=k)).pairs(p))


SCORED = [stage for stage in EXAMPLES if not isinstance(stage, sk.Streaming)]
AWARE = [sk.FlexPrefill(gamma=0.7, tau=tau, block_size=2) for tau in (0.2, 0.4, 0.6)]  # more or fewer query-aware heads


@pytest.mark.parametrize("stage", **named([*SCORED, *AWARE]))
@settings(max_examples=40)
@given(p=problems(causal=True, most=16), window=st.integers(1, 8), seeds=st.tuples(SEEDS, SEEDS, SEEDS))
def test_blocks_that_no_query_sees_change_no_choice(stage, p, window, seeds):
    """The chunk follows twelve keys before every window: whole blocks, for each block size here."""
    n = 12 + window - 1
    far, other, near = (4 * randn(seed, *p.k.shape[:2], n, p.k.shape[3]) for seed in seeds)
    v = torch.cat([p.v[:, :, :1].expand(-1, -1, n, -1), p.v], 2)
    one, two = (
        Problem.of(p.q, torch.cat([x[:, :, :12], near[:, :, 12:], p.k], 2), v, sliding_window=window)
        for x in (far, other)
    )
    assert torch.equal(lawful(stage, one).pairs(one), stage(two).pairs(two))


@given(p=windowed(), m=st.integers(1, 5), keep=st.sampled_from([0.01, 0.5, 0.9]))
def test_block_topk_spends_its_budget_inside_the_window(p, m, keep):
    blocks = sk.BlockTopK(keep, m)(p).blocks
    tiles = seen_tiles(p, m)
    listed = to_heads(blocks.mask(), p.q.shape[1])
    assert not (listed & ~tiles).any(), "only blocks with a pair inside"
    assert (listed.sum(-1) >= (tiles.sum(-1) * keep).ceil()).all(), "the budget, of blocks inside"
    assert (listed.sum(-1) <= (tiles.sum(-1) * keep).ceil() + 3).all()


@given(p=windowed(), m=st.integers(1, 5), sinks=st.integers(0, 6), window=st.integers(1, 9))
def test_streaming_lists_only_blocks_inside_the_window(p, m, sinks, window):
    plan = sk.Streaming(sinks, window, m)(p)
    if plan == Plan():
        assert p.sliding_window is not None and p.sliding_window <= window
        return
    assert not (to_heads(plan.blocks.mask(), p.q.shape[1]) & ~seen_tiles(p, m)).any()
    assert (plan.pairs(p) | ~sk.SlidingWindow(window, sinks).pairs(p)).all()


def seen_tiles(p, m):
    return torch.nn.functional.max_pool2d(p.visible().float(), m, ceil_mode=True).bool()


@given(p=windowed(square=True), gamma=st.floats(0.1, 0.95))
def test_flex_prefill_reaches_gamma_of_what_its_probe_sees(p, gamma):
    """With blocks of one token the probe is the last query, so its row can be computed by hand."""
    assume(p.full and p.sliding_window is not None and p.k.shape[2] > 2)
    k, K = to_heads(p.k, p.q.shape[1]), p.k.shape[2]
    probability = (
        (p.q[:, :, -1:] @ k.mT * p.scale).masked_fill(~p.visible()[:, :, -1:], -torch.inf).softmax(-1)[:, :, 0]
    )
    row = sk.FlexPrefill(gamma, 0.0, block_size=1)(p).pairs(p)[:, :, -1]
    assert ((probability * row).sum(-1) >= gamma).all()
    for b, h in torch.cartesian_prod(torch.arange(row.shape[0]), torch.arange(row.shape[1])):
        best = probability[b, h].argsort(descending=True)[: p.sliding_window]
        until = int((probability[b, h][best].cumsum(-1) <= gamma).sum()) + 2  # the crossing entry, and one as published
        verticals = set(best[:until].tolist())
        others = [x for x in best.tolist() if x != K - 1]
        assert set(row[b, h].nonzero().flatten().tolist()) == verticals | {K - 1, *others[: until - 1]}


@given(p=windowed(), seed=SEEDS)
def test_what_lies_before_the_window_never_changes_the_output(p, seed):
    assume(p.sliding_window is not None)
    k, v = p.k.clone(), p.v.clone()
    cut = p.k.shape[2] - p.sliding_window  # the last query does not see the keys before it
    noise = torch.randn(p.k[:, :, :cut].shape, generator=torch.Generator().manual_seed(seed), dtype=p.k.dtype)
    k[:, :, :cut], v[:, :, :cut] = noise, 7.0
    before, after = attend(p), attend(replace(p, k=k, v=v))
    last = p.q_pos == p.k.shape[2] - 1
    last = to_heads(last, p.q.shape[1]).expand(p.q.shape[:3])
    assert torch.equal(before.o[last], after.o[last])


def test_a_kernel_without_windows_says_so_and_leaves_them_to_another():
    x = torch.randn(1, 1, 16, 16)
    p, some = Problem.of(x, x, x, sliding_window=4), sk.Tokens.of(torch.arange(16).remainder(3).bool().expand(1, 1, 16))
    plan = Plan(some, some, fill=sk.SlidingWindow(2, sinks=0))
    assert "sliding window" in dispatch.why_not("triton", "scatter_tokens", p, plan, attend(p, plan))
    out, truth = attend(p, plan, backend="triton"), oracle(p, plan)
    torch.testing.assert_close(out.o.double(), truth.o, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.lse.double(), truth.lse, atol=1e-5, rtol=1e-5)
