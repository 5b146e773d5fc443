"""Tests of Pipeline: its text, specs, reuse of plans, dtypes, the report."""

import pytest
import torch
from closeness import no_worse, plain_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLES, named, plans, problems, randn
from torch.nn.functional import scaled_dot_product_attention

import sparsekit as sk
from sparsekit import (
    Attend,
    BlockTopK,
    Compress,
    Decompress,
    Pipeline,
    Problem,
    SlidingWindow,
    Streaming,
    TokenCoverage,
    recipes,
)

NORMAL = {
    "Attend": [],
    "TokenCoverage -> Compress -> Attend -> Decompress": [TokenCoverage()],
    "Streaming -> Attend": [Streaming()],
    "TokenCoverage -> Compress -> BlockTopK -> Attend -> Decompress": [TokenCoverage(), BlockTopK()],
    "TokenCoverage(tau=0.1) -> Compress(mode='gather') -> Streaming -> Attend(backend='cpu') -> "
    "Decompress(fill=SlidingWindow())": [
        Pipeline([TokenCoverage(tau=0.1), Compress("gather")]), Streaming(), Attend("cpu"), Decompress(SlidingWindow()),
    ],
}  # fmt: skip


@pytest.mark.parametrize("text,stages", NORMAL.items(), ids=range(len(NORMAL)))
def test_it_prints_the_whole(text, stages):
    assert str(Pipeline(stages)) == text


ratios = st.floats(0.01, 1)
counts = st.integers(1, 300)
token_stages = st.builds(
    TokenCoverage, ratios, counts, counts.map(lambda n: 2 * n + 1), counts, st.sampled_from(["head", "group", "layer"])
)
block_stages = st.one_of(st.builds(Streaming, counts, counts, counts), st.builds(BlockTopK, ratios, counts))
block_stages = block_stages | st.builds(sk.Union, st.lists(block_stages, min_size=1, max_size=2))
fills = st.one_of(
    st.just(sk.Zeros()),
    st.builds(SlidingWindow, counts, counts),
)
policies = st.tuples(
    st.lists(st.builds(Compress, st.sampled_from(["gather", "indexed"])), max_size=1),
    st.lists(block_stages, max_size=2),
    st.lists(st.builds(Attend, st.sampled_from(["cpu", "reference"])), max_size=1),
    st.lists(st.builds(Decompress, fills), max_size=1),
)


@given(st.lists(token_stages, max_size=2), policies)
def test_a_spec_and_its_inverse(tokens, rest):
    pipeline = Pipeline([*tokens, *(step for part in rest for step in part)])
    again = Pipeline.from_spec(pipeline.to_spec())
    assert again == pipeline and hash(again) == hash(pipeline) and repr(again) == repr(pipeline)
    assert Pipeline.from_spec(again.to_spec().replace(" | ", "\n  | ")) == pipeline, "over several lines"


@given(st.lists(token_stages, max_size=2), policies, st.randoms())
def test_policies_stand_anywhere(tokens, rest, random):
    compress, blocks, attend, decompress = rest
    mixed, steps = [*compress, *attend, *decompress], [*tokens, *blocks]
    random.shuffle(mixed)
    for policy in mixed:
        steps.insert(random.randint(0, len(steps)), policy)
    ordered = Pipeline([*tokens, *compress, *blocks, *attend, *decompress])
    assert Pipeline(steps) == ordered and Pipeline(steps).to_spec() == ordered.to_spec()


@pytest.mark.parametrize("name", recipes.PIPELINES)
def test_recipes_stack(name):
    recipe = recipes.PIPELINES[name]()
    below, above = Pipeline([recipe, sk.FlexPrefill()]), Pipeline([TokenCoverage(), recipe])
    assert below.stages == (*recipe.stages, sk.FlexPrefill()) and above.stages == (TokenCoverage(), *recipe.stages)
    assert below.decompress == above.decompress == recipe.decompress
    assert Pipeline.from_spec(f"{name} | flex_prefill") == below
    assert Pipeline.from_spec(f"token_coverage | {name}") == above


def test_specs_as_people_write_them():
    written = "token_coverage(tau=0.02) | streaming | decompress(fill=sliding_window(128, sinks=2))"
    meant = Pipeline([TokenCoverage(tau=0.02), Streaming(), Decompress(fill=SlidingWindow(128, sinks=2))])
    assert Pipeline.from_spec(written) == meant
    assert Pipeline.from_spec("dense") == Pipeline([]) and Pipeline([]).to_spec() == "dense"


@given(p=problems(causal=True))
def test_the_empty_pipeline_is_dense_attention(p):
    mask = torch.ones(p.q.shape[2], p.k.shape[2], dtype=torch.bool).tril(p.k.shape[2] - p.q.shape[2])
    sdpa = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(Pipeline([])(p.q, p.k, p.v), sdpa, atol=1e-9, rtol=1e-9)
    scaled = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask, enable_gqa=True, scale=0.7)
    torch.testing.assert_close(Pipeline([])(p.q, p.k, p.v, scale=0.7), scaled, atol=1e-9, rtol=1e-9)


@given(p=problems(causal=True))
def test_a_plan_can_be_reused(p):
    pipeline = Pipeline([TokenCoverage(tau=0.4, voters=2, min_tokens=0, sinks=2), Streaming(1, 2, 2)])
    plan = pipeline.plan(p.q, p.k, p.v)
    fresh = pipeline(p.q, p.k, p.v)
    assert torch.equal(pipeline(p.q, p.k, p.v, plan=plan), fresh)
    assert torch.equal(Pipeline([])(p.q, p.k, p.v, plan=plan), fresh)
    assert torch.equal(pipeline.output(p.q, p.k, p.v).o, fresh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=20)
@given(data=st.data())
def test_low_precision_is_no_worse_than_plain_torch(dtype, data):
    p = data.draw(problems())
    low = Problem(p.q.to(dtype), p.k.to(dtype), p.v.to(dtype), p.q_pos, p.k_pos, p.scale, p.causal)
    plan = data.draw(plans(low))
    out, plain, truth = sk.attend(low, plan), plain_torch(low, plan), sk.oracle(low, plan)
    assert out.o.dtype == dtype and out.lse.dtype == torch.float32
    no_worse(out.o, plain.o, truth.o, dtype)


@pytest.mark.parametrize("stage", **named(EXAMPLES))
def test_the_report_says_what_happened(stage):
    q, k, v = randn(0, 1, 4, 40, 8), randn(1, 1, 2, 40, 8), randn(2, 1, 2, 40, 8)
    pipeline = Pipeline([stage, Decompress(SlidingWindow(4, sinks=0))])
    report = pipeline.explain(q, k, v)
    p = Problem.of(q, k, v)
    plan, dense = pipeline(p), sk.oracle(p)
    last = report.steps[-1]
    assert last.density == pytest.approx(plan.density(p)) and last.kept == pytest.approx(plan.kept(p))
    expected = (sk.oracle(p, plan).o - dense.o).norm() / dense.o.norm()  # 40 rows: all are sampled
    assert last.error == pytest.approx(expected.item(), abs=1e-9)
    mass = (sk.oracle(p, plan).lse - dense.lse).exp().mean()  # sum of kept exp(scores) over the sum of all
    assert last.mass == pytest.approx(mass.item(), rel=1e-9)
    assert report.ms > 0 and report.dense_ms > 0 and type(stage).__name__ in str(report)


@pytest.mark.parametrize("bad", [-1, 2.5, None, True])
def test_last_queries_are_a_number(bad):
    q = torch.zeros(1, 1, 8, 4)
    with pytest.raises(ValueError, match="^dense_last: "):
        sk.Decompress(dense_last=bad)
    with pytest.raises(ValueError, match="^plan.dense_last: "):
        sk.attend(Problem.of(q, q, q), sk.Plan(dense_last=bad))
