"""Tests of extreme numbers: scales of either sign, counts beyond int32, low precision, NaN and inf in hidden keys."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from closeness import no_worse, plain_torch, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import EXAMPLES, SEEDS, named, padded, plans, problems, randn, whole_plans, windowed

import sparsekit as sk
from sparsekit import Blocks, Decompress, Output, Pipeline, Plan, Problem, SlidingWindow, attend, dispatch, oracle
from sparsekit.checks import ALL, LARGEST_SIZE
from sparsekit.problem import PAD, to_heads

# --- scales -----------------------------------------------------------------------------------------------------------

SCALES = [-0.3, -2.0, 0.0, -0.0, 0, -1, 5e-324, -1e-310, 1e-40, 1e30, -1e100]


def by_hand(q, k, v, scale, pairs):
    """Compute attention over the pairs with the given scale, without sparsekit."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).double() for x in (k, v))
    scores = (q.double() @ k.mT * scale).masked_fill(~pairs, -torch.inf)
    return Output(scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1))


@settings(max_examples=80)
@given(data=st.data(), scale=st.sampled_from(SCALES))
def test_any_scale_is_that_scale(data, scale):
    drawn = data.draw(problems() | windowed())
    given_, window = (drawn.q, drawn.k, drawn.v, drawn.causal), drawn.sliding_window
    p = Problem.of(*given_, scale=scale, sliding_window=window)
    assert p.scale > 0
    plan = data.draw(whole_plans(p))
    truth = by_hand(*given_[:3], scale, plan.pairs(p))
    same(oracle(p, plan), truth)
    for backend in dispatch.AUTO["cpu"]:
        for mode in ("gather", "indexed"):
            same(attend(p, plan, backend=backend, compress=mode), truth)


@pytest.mark.parametrize("stage", **named([None, *EXAMPLES]))
@settings(max_examples=12)
@given(p=problems(), scale=st.sampled_from(SCALES))
def test_a_pipeline_takes_any_scale(stage, p, scale):
    """The second call of a shape may run other code."""
    pipeline = Pipeline([stage, Decompress(SlidingWindow(3, sinks=0), dense_last=2)] if stage else [])
    try:
        plan = pipeline.plan(p.q, p.k, p.v, causal=p.causal, scale=scale)
    except ValueError as refusal:
        assert type(stage).__name__ in str(refusal)
        assume(False)
    truth = by_hand(p.q, p.k, p.v, scale, plan.pairs(p))
    for _ in range(2):
        found = pipeline(p.q, p.k, p.v, causal=p.causal, scale=scale)
        torch.testing.assert_close(found, truth.o, atol=1e-10, rtol=1e-10)
    same(pipeline.output(p.q, p.k, p.v, causal=p.causal, scale=scale), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-45, -1e-40, 1e30])
def test_any_scale_in_low_precision(dtype, scale):
    q, k, v = (randn(i, 2, h, n, 16).to(dtype) for i, (h, n) in enumerate([(4, 33), (2, 97), (2, 97)]))
    for plan in (Plan(), Plan(blocks=Blocks.of(randn(3, 2, 4, 3, 7) > -0.3, (16, 16)))):
        for backend in dispatch.AUTO["cpu"]:
            p = Problem.of(q, k, v, scale=scale)
            out, truth = attend(p, plan, backend=backend), by_hand(q, k, v, scale, plan.pairs(p))
            no_worse(out.o, plain_torch(p, plan).o, truth.o, dtype)
            finite = truth.lse.isfinite()
            assert torch.equal(out.lse.isfinite(), finite)
            torch.testing.assert_close(out.lse[finite].double(), truth.lse[finite], rtol=1e-4, atol=1e-4)


def test_a_scale_that_float32_does_not_hold_is_refused():
    x = torch.ones(1, 1, 4, 4)
    for scale in (1e39, -1e300, 10**400):
        with pytest.raises(ValueError, match="^scale: got"):
            Pipeline()(x, x, x, scale=scale)
    assert Pipeline()(x.double(), x.double(), x.double(), scale=1e300).isfinite().all()


# --- counts and sizes -------------------------------------------------------------------------------------------------

ENOUGH = 10**6  # more than any length here
HUGE = st.sampled_from([2**31 - 2, 2**31 - 1, 2**31, 2**31 + 5, 2**32 + 3, sys.maxsize, 2**63, 2**64 + 1])
FILLS = [
    lambda n: SlidingWindow(n, sinks=0),
    lambda n: SlidingWindow(n, sinks=n),
    lambda n: SlidingWindow(2, sinks=n),
]
STAGES = [
    lambda n: sk.TokenCoverage(0.4, voters=n, pool=1, min_tokens=0, sinks=2),
    lambda n: sk.TokenCoverage(0.4, voters=2, pool=1, min_tokens=n, sinks=2),
    lambda n: sk.Streaming(sinks=n, window=2, block_size=3),
    lambda n: sk.Streaming(sinks=1, window=n, block_size=3),
    lambda n: sk.FlexPrefill(0.4, 0.2, 2, min_budget=n),
    lambda n: sk.FlexPrefill(0.4, 0.2, 2, max_budget=n),
]


@pytest.mark.parametrize("make", FILLS, ids=range(len(FILLS)))
@settings(max_examples=25)
@given(data=st.data(), n=HUGE)
def test_a_window_or_sinks_beyond_int32_are_all(make, data, n):
    p = data.draw(problems() | windowed() | padded())
    huge, enough = make(n), make(ENOUGH)
    assert torch.equal(huge.pairs(p), enough.pairs(p)) and torch.equal(huge.counts(p), enough.counts(p))
    assert all(map(torch.equal, huge.spans(p), enough.spans(p)))
    plan = replace(data.draw(plans(p, fill=False)), fill=huge)
    assert torch.equal(plan.work(p), plan.pairs(p).sum((-1, -2)))
    for backend in dispatch.AUTO["cpu"]:
        same(attend(p, plan, backend=backend), oracle(p, replace(plan, fill=enough)))


@pytest.mark.parametrize("make", STAGES, ids=range(len(STAGES)))
@settings(max_examples=25)
@given(p=problems() | windowed(), n=HUGE)
def test_a_stage_takes_a_count_beyond_int32_as_all(make, p, n):
    try:
        enough = make(ENOUGH)(p)
    except ValueError:
        assume(False)
    assert torch.equal(make(n)(p).pairs(p), enough.pairs(p))


@settings(max_examples=40)
@given(p=problems(causal=True), n=HUGE)
def test_other_counts_beyond_int32_are_all(p, n):
    assert Problem.of(p.q, p.k, p.v, sliding_window=n).sliding_window is None
    assert torch.equal(replace(p, sliding_window=n).visible(), p.visible())
    some = sk.TokenCoverage(0.9, voters=1, pool=1, min_tokens=0, sinks=2)
    assert Pipeline([some, Decompress(dense_last=n)])(p) == Plan()
    assert Pipeline([some], break_even=n)(p) == Plan()
    plan = replace(some(p), dense_last=n)
    same(attend(p, plan), oracle(p))
    assert torch.equal(plan.work(p), Plan().work(p))


def test_such_counts_stand_in_specs_and_in_graphs():
    tail = f"decompress(fill=sliding_window({2**64}, sinks={2**65}), dense_last={2**70})"
    spec = f"token_coverage(voters=2, min_tokens=0, sinks=2) | {tail}"
    pipeline = Pipeline.from_spec(spec)
    assert Pipeline.from_spec(pipeline.to_spec()) == pipeline
    q, k, v = (randn(i, 1, 2, 40, 8) for i in range(3))
    plan = replace(sk.TokenCoverage(0.9, 2, 1, 0, sinks=2)(Problem.of(q, k, v)), dense_last=2**64)
    compiled = torch.compile(lambda q, k, v: pipeline.output(q, k, v, plan=plan).o, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), Pipeline()(q, k, v))


@pytest.mark.parametrize("size", [LARGEST_SIZE + 1, ALL, sys.maxsize, 2**64 + 1])
def test_sizes_that_memory_grows_with_have_an_end(size):
    stages = [sk.Streaming, sk.BlockTopK, sk.FlexPrefill]
    for make in [*(lambda n, s=s: s(block_size=n) for s in stages), lambda n: sk.TokenCoverage(pool=n | 1)]:
        with pytest.raises(ValueError, match=f"got {size | (size % 2)}.*at most {LARGEST_SIZE}.*smaller|pool: got"):
            make(size)
    x = torch.ones(1, 1, 4, 4)
    one = Blocks.of(torch.ones(1, 1, 1, 1, dtype=torch.bool), (size, size))
    with pytest.raises(ValueError, match="^plan.blocks.size: got"):
        attend(Problem.of(x, x, x), Plan(blocks=one))
    for s in stages:
        s(block_size=LARGEST_SIZE)


# --- low precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", **named(EXAMPLES))
@settings(max_examples=15)
@given(p=problems(), std=st.sampled_from([1.0, 60.0, 3000.0]))
def test_a_stage_decides_as_on_the_same_numbers_in_float32(stage, dtype, p, std):
    """Products of float16 entries, and sums of them, may overflow float16."""
    low = [(x * std).clamp(-6e4, 6e4).to(dtype) for x in (p.q, p.k)]
    one, other = (
        Problem.of(*(x.to(d) for x in (*low, p.v)), p.causal, scale=p.scale / std**2) for d in (dtype, torch.float32)
    )
    try:
        expected = stage(other)
    except ValueError:
        assume(False)
    assert torch.equal(stage(one).pairs(one), expected.pairs(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", dispatch.AUTO["cpu"])
def test_scores_may_be_larger_than_the_dtype_holds(backend, dtype):
    q, k, v = (randn(i, 1, h, 130, 64) for i, h in enumerate((4, 2, 2)))
    p = Problem.of((q * 900).to(dtype), (k * 900).to(dtype), v.to(dtype), scale=1 / 8e5)
    wide = replace(p, q=p.q.float(), k=p.k.float(), v=p.v.float())
    some = sk.TokenCoverage(0.5, 4, 3, 8, sinks=2)(p)
    fills = [replace(some, fill=SlidingWindow(9, sinks=2)), replace(some, fill=SlidingWindow(9, sinks=0))]
    for plan in (Plan(), sk.BlockTopK(0.5, 16)(p), *fills):
        for mode in ("gather", "indexed"):
            out = attend(p, plan, backend=backend, compress=mode)
            no_worse(out.o, plain_torch(wide, plan).o, oracle(p, plan).o, dtype)
            torch.testing.assert_close(out.lse, oracle(p, plan).lse.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_bound_is_not_kept_by_scores_in_low_precision(dtype):
    """The bound tells an output that is rounded in between from one that is rounded only at the end."""
    p = Problem.of(*(randn(i, 2, 4, 200, 128).to(dtype) for i in range(3)), scale=1.0)
    seen = p.visible()
    scores = (p.q @ p.k.mT * p.scale).float().masked_fill(~seen, -torch.inf)
    rounded = (scores.softmax(-1).to(dtype) @ p.v).to(dtype)
    plain, truth = plain_torch(p), oracle(p)
    no_worse(attend(p, backend="reference").o, plain.o, truth.o, dtype)
    no_worse(attend(p).o, plain.o, truth.o, dtype)
    with pytest.raises(AssertionError, match="allowed"):
        no_worse(rounded, plain.o, truth.o, dtype)


# --- NaN and inf ------------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(data=st.data(), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_in_a_later_key_reaches_no_earlier_row(data, bad):
    """This holds for the same plan. NaN or inf in padding slots reaches no row either."""
    p = data.draw(problems(causal=True) | windowed() | padded())
    plan = data.draw(whole_plans(p))
    cut = data.draw(st.integers(0, p.k.shape[2]))
    k = p.k.clone()
    hidden = (to_heads(p.k_pos, k.shape[1]) == PAD).expand(k.shape[:3])
    if p.causal:
        hidden = hidden | (torch.arange(k.shape[2]) >= cut)
    k[hidden] = bad
    k[..., 1:] = p.k[..., 1:]  # one bad entry of a row is enough
    for backend in dispatch.AUTO["cpu"]:
        for mode in ("gather", "indexed"):
            before = attend(p, plan, backend=backend, compress=mode)
            after = attend(replace(p, k=k), plan, backend=backend, compress=mode)
            blind = ~(p.visible() & to_heads(hidden, p.q.shape[1])[:, :, None]).any(-1)
            same(*(Output(x.o[blind], x.lse[blind]) for x in (before, after)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@given(seed=SEEDS)
@settings(max_examples=5)
def test_as_many_rows_as_under_torchs_attention(bad, seed):
    q, k, v = (randn(seed + i, 1, 2, 97, 16) for i in range(3))
    k[:, :, 90] = bad
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).isnan()
    some = sk.TokenCoverage(0.3, 8, 3, 4, sinks=2)
    for steps in ([sk.BlockTopK(0.5, 16)], [sk.Streaming(4, 16, 16)], [some, Decompress(SlidingWindow(16, sinks=2))]):
        assert (Pipeline(steps)(q, k, v).isnan() <= expected).all()
