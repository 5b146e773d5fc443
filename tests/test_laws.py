"""Tests of the laws of plans, stages, fills and backends. They find a new stage by its EXAMPLES and DENSE."""

from dataclasses import replace

import pytest
import torch
from closeness import same
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    EXAMPLES,
    FILLS,
    MODULES,
    SEEDS,
    blocks,
    named,
    padded,
    plans,
    problems,
    randn,
    tokens,
    tries,
    whole_plans,
    windowed,
)
from torch.nn.functional import scaled_dot_product_attention

import sparsekit as sk
from sparsekit import Blocks, Output, Plan, Problem, Tokens, attend, dispatch, oracle
from sparsekit.problem import PAD, to_heads
from sparsekit.testing import laws
from sparsekit.testing.laws import lawful

# Triton's interpreter is slow; tests/ops/test_triton.py tests this law for it
ATTENDING = [b for b in dispatch.BACKENDS if dispatch.table()["attend"][b] is None and b != "triton"]


# --- the truth -------------------------------------------------------------------------------------------------


@given(p=problems())
def test_the_oracle_is_torch_attention(p):
    """Compare with torch alone: the right-hand side uses nothing of sparsekit."""
    Q, K = p.q.shape[2], p.k.shape[2]
    mask = torch.ones(Q, K, dtype=torch.bool).tril(K - Q) if p.causal else None
    sdpa = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(oracle(p, Plan()).o, sdpa, atol=1e-9, rtol=1e-9)
    k = p.k.repeat_interleave(p.q.shape[1] // p.k.shape[1], 1)
    scores = p.q @ k.mT / p.q.shape[3] ** 0.5
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(oracle(p, Plan()).lse, scores.logsumexp(-1), atol=1e-9, rtol=1e-9)


@given(st.data())
def test_every_backend_computes_the_pairs_of_the_plan(data):
    p = data.draw(problems())
    plan = data.draw(whole_plans(p))
    truth = oracle(p, plan)
    for backend in ATTENDING:
        for mode in ("gather", "indexed"):
            try:
                out = attend(p, plan, backend=backend, compress=mode)
            except sk.NoBackendError:  # tests/ops/ tests which plans a backend must take
                assert backend not in dispatch.AUTO["cpu"]
                continue
            same(out, truth)


@given(st.data())
def test_outputs_over_disjoint_keys_merge(data):
    p = data.draw(problems())
    side = torch.rand(p.k.shape[2], generator=torch.Generator().manual_seed(data.draw(SEEDS))) < 0.5
    left, right = (Plan(keys=Tokens.of(mask.expand(p.q.shape[0], 1, -1))) for mask in (side, ~side))
    same(oracle(p, left).merge(oracle(p, right)), oracle(p, Plan()))


@given(p=problems())
def test_a_chunk_is_the_end_of_the_whole(p):
    """With fewer queries than keys the queries sit at the end."""
    assume(p.causal)
    whole = Problem.of(
        torch.cat([randn(0, *p.q.shape[:2], p.k.shape[2] - p.q.shape[2], p.q.shape[3]), p.q], 2), p.k, p.v
    )
    torch.testing.assert_close(oracle(p, Plan()).o, oracle(whole, Plan()).o[:, :, -p.q.shape[2] :])


@given(p=problems(), window=st.integers(1, 8))
def test_window_scores_are_sums_of_attention_probabilities(p, window):
    """Compare with loops over the definition."""
    assume(p.q.shape[2] <= p.k.shape[2])
    columns, distances = dispatch.run("window_scores", "cpu", p, window, True)
    k = to_heads(p.k, p.q.shape[1])
    probability = (p.q @ k.mT * p.scale).masked_fill(~p.visible(), float("-inf")).softmax(-1)[:, :, -window:]
    torch.testing.assert_close(columns, probability.mean(2))
    torch.testing.assert_close(columns, dispatch.run("window_scores", "cpu", p, window)[0])
    expected, (Q, K) = torch.zeros_like(columns), (probability.shape[2], p.k.shape[2])
    for i in range(Q):
        for j in range(K - Q + i + 1):
            expected[..., K - Q + i - j] += probability[:, :, i, j] / Q
    torch.testing.assert_close(distances, expected)


# --- tokens, blocks, plans ----------------------------------------------------------------------------------------


@given(st.data())
def test_gather_and_scatter_are_inverse_where_tokens_are_kept(data):
    p = data.draw(problems())
    t = data.draw(tokens(p, "k"))
    x = randn(data.draw(SEEDS), p.q.shape[0], p.q.shape[1], t.n, 3)
    kept = to_heads(t.kept(), p.q.shape[1])[..., None]
    assert torch.equal(t.scatter(t.gather(x, pad=0.0), fill=0.0), x * kept)
    assert torch.equal(t.scatter(t.gather(x, pad=0.0), fill=7.0), torch.where(kept, x, 7.0))
    y = t.gather(x, pad=0.0)
    assert torch.equal(t.gather(t.scatter(y, fill=0.0), pad=0.0), y)
    grouped = x[:, : p.k.shape[1]]
    heads = max(t.idx.shape[1], grouped.shape[1])
    expected = torch.take_along_dim(
        to_heads(grouped, heads), to_heads(t.idx, heads).long().clamp(max=t.n - 1)[..., None], 2
    ).masked_fill((to_heads(t.idx, heads) == t.n)[..., None], 9.0)
    assert torch.equal(t.gather(grouped, pad=9.0), expected)


@given(st.data())
def test_masks_and_lists_say_the_same(data):
    p = data.draw(problems())
    t, b = data.draw(tokens(p, "k")), data.draw(blocks(p))
    assert torch.equal(Tokens.of(t.kept()).idx, t.idx)
    again = Blocks.of(b.mask(), b.size)
    assert torch.equal(again.indices, b.indices) and torch.equal(again.counts, b.counts)
    for idx, n in ((t.idx, t.n), (b.indices, b.n)):
        assert idx.dtype == torch.int32
        assert ((idx[..., 1:] > idx[..., :-1]) | (idx[..., 1:] == n)).all() and (idx <= n).all() and (idx >= 0).all()
    assert torch.equal((b.indices < b.n).sum(-1), b.counts)


@given(st.data())
def test_plans_form_a_monoid_and_chaining_keeps_the_meaning(data):
    p = data.draw(problems())
    a = Plan(data.draw(tokens(p, "q")), data.draw(tokens(p, "k")))
    c = a.compress(p)
    b = data.draw(plans(c, fill=False))
    both = a.then(b)
    assert torch.equal(both.pairs(p), Plan().then(both).then(Plan()).pairs(p))
    inside = b.pairs(c)  # [B, H, Sq, Sk], in the coordinates a left
    H = p.q.shape[1]
    iq, ik = to_heads(a.queries.idx, H), to_heads(a.keys.idx, H)
    lifted = inside.new_zeros(p.q.shape[0], H, a.queries.n + 1, a.keys.n + 1)
    B_, H_ = torch.arange(p.q.shape[0])[:, None, None, None], torch.arange(H)[:, None, None]
    lifted[B_, H_, iq[..., :, None], ik[..., None, :]] = inside
    assert torch.equal(both.pairs(p), lifted[..., :-1, :-1] & p.visible())
    same(attend(p, both), oracle(p, both))


@given(st.data())
def test_then_is_associative(data):
    p = data.draw(problems())
    a = data.draw(plans(p))
    assume(a.blocks is None)
    b = data.draw(plans(a.compress(p)))
    assume(b.blocks is None)
    c = data.draw(plans(b.compress(a.compress(p))))
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert torch.equal(left.pairs(p), right.pairs(p)) and left.fill == right.fill
    assert a.then(b).fill == (a.fill if b.fill is None else b.fill), "the last fill named holds"


@given(st.data())
def test_block_choices_intersect_and_unite(data):
    p = data.draw(problems())
    a, b = (Plan(blocks=data.draw(blocks(p, (2, 3)))) for _ in range(2))
    assert torch.equal(a.then(b).pairs(p), a.pairs(p) & b.pairs(p))
    assert torch.equal(Plan(blocks=a.blocks | b.blocks).pairs(p), a.pairs(p) | b.pairs(p))
    assert a.then(b).density(p) <= a.density(p) <= Plan().density(p) == 1.0


@tries(250)
@given(st.data())
def test_work_and_density_count_the_pairs(data):
    p = data.draw(problems())
    plan = data.draw(whole_plans(p))
    assert torch.equal(plan.work(p), plan.pairs(p).sum((-1, -2)))
    assert plan.density(p) == pytest.approx((plan.pairs(p).sum() / p.visible().sum()).item(), rel=1e-6)
    if plan.queries:
        kept = plan.queries.kept() | plan.last(p)
        assert plan.kept(p) == pytest.approx(kept.double().mean().item(), rel=1e-6)


@given(p=problems(), fill=FILLS)
def test_a_fill_counts_its_pairs(p, fill):
    fill = fill or sk.Zeros()
    counts = to_heads(fill.counts(p), p.q.shape[1])
    assert torch.equal(counts.expand(p.q.shape[:3]), fill.pairs(p).sum(-1))


@given(st.data())
def test_pairs_of_some_rows_are_rows_of_the_pairs(data):
    p = data.draw(problems())
    plan = data.draw(whole_plans(p))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, p.q.shape[2] - 1), min_size=1, max_size=5)))
    assert torch.equal(plan.pairs(p, rows), plan.pairs(p)[:, :, rows])
    assert torch.equal(p.visible(rows), p.visible()[:, :, rows])


@given(st.data())
def test_what_is_known_of_positions_is_what_they_tell(data):
    p = data.draw(problems())
    outer = data.draw(plans(p, fill=False))
    plan = outer if outer.blocks else outer.then(data.draw(plans(outer.compress(p), fill=False)))
    short = plan.compress(p)
    told = replace(short, queries_last=False, full=False)
    assert torch.equal(*(to_heads(x.reach(), p.q.shape[1]) for x in (short, told)))
    assert not short.full or not ((short.q_pos == PAD).any() or (short.k_pos == PAD).any())
    if short.queries_last:
        told.require_queries_last("the law")
    for head in range(p.q.shape[1]):
        one = plan.head(head, p.q.shape[1]).compress(p.head(head))
        assert (one.queries_last, one.full) == (short.queries_last, short.full)


@given(p=problems(), fill=FILLS)
def test_a_window_spans_its_pairs(p, fill):
    assume(isinstance(fill, sk.SlidingWindow))
    low, high, sinks = (to_heads(x, p.q.shape[1])[..., None] for x in fill.spans(p))
    slot = torch.arange(p.k.shape[2])
    assert torch.equal((((slot >= low) & (slot < high)) | (slot < sinks)).expand_as(p.visible()), fill.pairs(p))


@given(st.data())
def test_dropped_queries_get_the_fill_and_kept_ones_do_not(data):
    p = data.draw(problems())
    t, fill = data.draw(tokens(p, "q")), data.draw(FILLS)
    plan = Plan(queries=t, keys=data.draw(tokens(p, "k")), fill=fill)
    kept = to_heads(t.kept(), p.q.shape[1])
    out = attend(p, plan)
    if fill is None or fill == sk.Zeros():
        assert (out.o[~kept] == 0).all() and (out.lse[~kept] == float("-inf")).all()
    else:
        q, k = p.q_pos[..., :, None], p.k_pos[..., None, :]
        near = ((q - k).abs() < fill.window) | (k < fill.sinks)
        near = near & (k <= q) if p.causal else near
        expected = scaled_dot_product_attention(
            p.q, p.k, p.v, attn_mask=near.expand(-1, p.q.shape[1], -1, -1), enable_gqa=True
        )
        torch.testing.assert_close(out.o[~kept], expected[~kept], atol=1e-9, rtol=1e-9)
    without = attend(p, Plan(queries=t, keys=plan.keys))
    assert torch.equal(out.o[kept], without.o[kept]), "the fill leaves kept queries alone"


@tries(250)
@given(st.data())
def test_the_last_queries_see_everything_and_the_others_what_they_saw(data):
    """The last queries are the last that are no padding."""
    p = data.draw(problems() | windowed() | padded())
    n, plan = data.draw(st.integers(1, 30)), data.draw(plans(p))
    whole = replace(plan, dense_last=n)
    found, before, dense = (attend(p, x) for x in (whole, plan, Plan()))
    real = (p.q_pos != PAD).sum(-1, keepdim=True)
    slot = torch.arange(p.q.shape[2])
    last = to_heads((slot >= real - n) & (slot < real), p.q.shape[1])
    expected = (torch.where(last[..., None], dense.o, before.o), torch.where(last, dense.lse, before.lse))
    same(found, Output(*expected))
    assert torch.equal(whole.work(p), whole.pairs(p).sum((-1, -2)))
    one = [whole.head(h, p.q.shape[1]).pairs(p.head(h)) for h in range(p.q.shape[1])]
    assert torch.equal(torch.cat(one, 1), whole.pairs(p))


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(20)
@given(p=problems(causal=True) | padded(), fill=FILLS, n=st.integers(1, 8))
def test_the_last_queries_vote_though_they_are_dense(stage, p, fill, n):
    """Stages choose the same tokens with `dense_last` and without it."""
    assume(n < p.q.shape[2])
    alone, fill = lawful(stage, p), fill or sk.Zeros()
    plan, whole = (sk.Pipeline([stage, sk.Decompress(fill, last)])(p) for last in (0, n))
    assert whole == replace(plan, dense_last=0 if alone == Plan() else n)


def test_a_pipeline_names_its_last_queries_once():
    p = Problem.of(*(randn(i, 1, 2, 40, 4) for i in range(3)))
    some = sk.TokenCoverage(tau=0.5, voters=2, pool=1, min_tokens=0, sinks=2)
    tail = sk.Pipeline([some, sk.Decompress(dense_last=5)])
    assert tail(p).dense_last == 5 and tail.to_spec().endswith("decompress(dense_last=5)")
    assert sk.Pipeline.from_spec(tail.to_spec()) == tail
    assert sk.Pipeline([sk.TokenCoverage(tau=0.0), sk.Decompress(dense_last=5)])(p) == Plan(), "dense as it is"
    same(tail.output(p.q, p.k, p.v), oracle(p, tail(p)))
    same(tail.output(p.q, p.k, p.v, plan=tail(p)), oracle(p, tail(p)))
    with pytest.raises(ValueError, match="dense_last: got 5 in an inner plan"):
        some(p).then(tail(p))
    assert tail.explain(p.q, p.k, p.v).steps[-1].density == pytest.approx(tail(p).density(p))
    assert Plan().then(tail(p)).dense_last == tail(p).then(Plan()).dense_last == 5


@given(st.data())
def test_the_future_never_changes_the_past(data):
    """Given the same plan, a later token changes no earlier query's output."""
    p = data.draw(problems(square=True, causal=True))
    plan = data.draw(whole_plans(p))
    cut = data.draw(st.integers(0, p.q.shape[2] - 1))
    before = attend(p, plan)
    k, v = p.k.clone(), p.v.clone()
    k[:, :, cut + 1 :], v[:, :, cut + 1 :] = 5.0, -3.0
    after = attend(Problem.of(p.q, k, v), plan)
    torch.testing.assert_close(before.o[:, :, : cut + 1], after.o[:, :, : cut + 1], atol=1e-12, rtol=1e-12)


def test_tokens_after_blocks_are_refused():
    p = Problem.of(*(randn(i, 1, 1, 8, 4) for i in range(3)))
    chosen = Plan(blocks=Blocks.of(torch.ones(1, 1, 2, 2, dtype=torch.bool), (4, 4)))
    with pytest.raises(ValueError, match="move the token stage before the block stage"):
        chosen.then(Plan(queries=Tokens.of(torch.ones(1, 1, 8, dtype=torch.bool))))
    assert chosen.then(Plan()).pairs(p).equal(chosen.pairs(p))


# --- stages: sparsekit/testing/laws.py defines each law --------------------------------------------------


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(30)
@given(p=problems())
def test_a_stage_gives_a_lawful_plan(stage, p):
    laws.leaves_its_input_alone(stage, p)
    laws.gives_a_lawful_plan(stage, p)


@pytest.mark.parametrize("module", **named(MODULES))
@tries(15)
@given(p=problems(), size=st.integers(1, 6))
def test_the_dense_setting_is_dense_attention(module, p, size):
    laws.is_dense_attention_in_its_dense_setting(module.DENSE, p, size)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(80)
@given(p=problems())
def test_a_stage_judges_each_sequence_alone(stage, p):
    laws.gives_the_same_plan_twice(stage, p)
    laws.judges_each_sequence_alone(stage, p)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(15)
@given(p=problems(square=True), extra=st.integers(1, 5))
def test_padding_slots_change_nothing(stage, p, extra):
    laws.is_not_changed_by_padding(stage, p, extra)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(20)
@given(p=problems(), fill=FILLS)
def test_stages_chain_with_the_nested_meaning(stage, p, fill):
    laws.chains_with_the_nested_meaning(stage, p, fill)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(8)
@given(data=st.data())
def test_nan_and_inf_neither_crash_nor_break_the_plan(stage, bad, data):
    laws.bears_nan_and_inf(stage, data.draw(problems()), bad, data)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
@tries(20)
@given(p=problems(causal=True))
def test_a_stage_lists_nothing_of_the_future(stage, p):
    laws.lists_nothing_of_the_future(stage, p)


@pytest.mark.parametrize("stage", **named([stage for stage in EXAMPLES if getattr(stage, "sinks", 0)]))
@tries(20)
@given(p=problems())
def test_a_stage_with_sinks_shows_them(stage, p):
    laws.shows_the_sinks(stage, p, stage.sinks)


@pytest.mark.parametrize("stage", EXAMPLES, ids=repr)
def test_a_stage_is_what_its_spec_says(stage):
    laws.is_what_its_spec_says(stage)


def test_every_stage_is_exported():
    for module in MODULES:
        assert type(module.EXAMPLES[0]).__name__ in sk.stages.__all__
        assert type(module.EXAMPLES[0]).__name__ in sk.__all__
        assert module.__doc__ and "Source:" in module.__doc__ or module.__name__.endswith("union")


# --- short problems -----------------------------------------------------------------------------------------------


@given(p=problems(square=True, causal=True))
def test_one_choice_for_queries_and_keys_keeps_causality_an_index_comparison(p):
    """A kernel with only an `is_causal` flag can run the compressed causal problem, padding and all."""
    plan, H = sk.TokenCoverage(tau=0.4, voters=2, pool=1, min_tokens=0, sinks=2)(p), p.q.shape[1]
    c = plan.compress(p)
    sdpa = scaled_dot_product_attention(c.q, to_heads(c.k, H), to_heads(c.v, H), is_causal=True)
    out = plan.queries.scatter(sdpa, 0.0) if plan.queries else sdpa
    torch.testing.assert_close(out, oracle(p, plan).o, atol=1e-9, rtol=1e-9)
