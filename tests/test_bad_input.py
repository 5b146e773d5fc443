"""Tests that bad input raises a ValueError with the argument, its value, the allowed values and what to do."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import randn

import sparsekit as sk
from sparsekit import Pipeline, Problem, recipes

GOOD = dict(q=(2, 4, 6, 8), k=(2, 2, 6, 8), v=(2, 2, 6, 8))


def tensors(dtype=torch.float32, **shapes):
    return {name: randn(0, *shape).to(dtype) for name, shape in {**GOOD, **shapes}.items()}


def refused(message, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert ": " in str(caught.value) and len(str(caught.value)) > 40, "what to do is missing"


BAD_TENSORS = {
    "rank": (dict(q=(4, 6, 8)), r"^q: got shape \(4, 6, 8\), rank 3"),
    "rank of k": (dict(k=(2, 2, 6, 8, 1)), r"^k: got shape .*rank 5"),
    "heads do not divide": (dict(k=(2, 3, 6, 8), v=(2, 3, 6, 8)), r"^k: got 3 heads.*4 heads of q"),
    "more key heads": (dict(k=(2, 8, 6, 8), v=(2, 8, 6, 8)), r"^k: got 8 heads"),
    "batch": (dict(k=(1, 2, 6, 8)), r"^k: got batch 1, but q has 2"),
    "batch of v": (dict(v=(3, 2, 6, 8)), r"^v: got batch 3"),
    "length of v": (dict(v=(2, 2, 5, 8)), r"^v: got 2 heads of length 5"),
    "heads of v": (dict(v=(2, 4, 6, 8)), r"^v: got 4 heads"),
    "head dim": (dict(k=(2, 2, 6, 4)), r"^k: got head dim 4, but q has 8"),
    "empty": (dict(q=(2, 4, 0, 8)), r"^q: got shape .*empty"),
    "empty keys": (dict(k=(2, 2, 0, 8), v=(2, 2, 0, 8)), r"^k: got shape .*empty"),
    "too many queries": (dict(q=(2, 4, 7, 8)), r"^q: 7 queries but only 6 keys"),
}


@pytest.mark.parametrize("shapes,message", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_shapes(shapes, message):
    refused(message, lambda: Pipeline([])(**tensors(**shapes)))
    refused(message, lambda: Pipeline([sk.TokenCoverage()]).plan(**tensors(**shapes)))
    refused(message, lambda: Pipeline([]).explain(**tensors(**shapes)))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_bad_dtype_device_and_type(name):
    for dtype in (torch.int64, torch.bool, torch.complex64):
        given_ = tensors()
        given_[name] = given_[name].to(dtype)
        refused(rf"^{name}: got dtype {dtype}", lambda g=given_: Pipeline([])(**g))
    refused(rf"^{name}: got list", lambda: Pipeline([])(**{**tensors(), name: [[1.0]]}))
    if name != "q":
        other = {**tensors(), name: tensors(torch.float16)[name]}
        refused(rf"^{name}: got dtype torch.float16, but q has torch.float32", lambda: Pipeline([])(**other))
        other = {**tensors(), name: tensors()[name].to("meta")}
        refused(rf"^{name}: got device meta, but q has cpu", lambda: Pipeline([])(**other))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "1", True, [1.0]])
def test_bad_scale(scale):
    refused("^scale: got", lambda: Pipeline([])(**tensors(), scale=scale))


def test_more_queries_than_keys_are_fine_when_not_causal():
    out = Pipeline([])(**tensors(q=(2, 4, 7, 8)), causal=False)
    assert out.shape == (2, 4, 7, 8)


def test_bad_plans():
    """A plan of another problem, or a wrong plan built by hand, never reaches a kernel."""
    p = sk.Problem.of(**tensors())
    t = sk.Tokens.of(torch.ones(2, 2, 6, dtype=torch.bool))
    b = sk.Blocks.of(torch.ones(2, 1, 3, 3, dtype=torch.bool), (2, 2))
    lists = lambda indices, counts=b.counts, n=3: sk.Plan(blocks=sk.Blocks(counts, indices, (2, 2), n))  # noqa: E731
    shapes = {
        r"^plan.queries: chosen out of 7 tokens, but there are 6": sk.Plan(sk.Tokens(t.idx, 7)),
        r"^plan.keys.idx: got torch.int64 on cpu": sk.Plan(keys=sk.Tokens(t.idx.long(), 6)),
        r"^plan.keys.idx: got torch.int32 on meta": sk.Plan(keys=sk.Tokens(t.idx.to("meta"), 6)),
        r"^plan.keys.idx: got shape \(1, 2, 6\)": sk.Plan(keys=sk.Tokens(t.idx[:1], 6)),
        r"^plan.keys.idx: got shape \(2, 3, 6\)": sk.Plan(keys=sk.Tokens(t.idx[:, [0, 1, 1]], 6)),
        r"^plan.blocks: got lists \(2, 1, 2, 3\)": lists(b.indices[:, :, :2], b.counts[..., :2]),
        r"^plan.blocks: got lists .*for 4 key blocks": lists(b.indices, n=4),
        r"^plan.blocks: got lists .* 2 query and 3 key": sk.Plan(sk.Tokens(t.idx[..., :4], 6), blocks=b),
        r"^plan.blocks: .*counts \(2, 1, 2\)": lists(b.indices, b.counts[..., :2]),
    }
    contents = {
        r"^plan.queries.idx: got an index out of range": sk.Plan(sk.Tokens(t.idx - 1, 6)),
        r"^plan.keys.idx: got an index out of range": sk.Plan(keys=sk.Tokens(t.idx + 2, 6)),
        r"^plan.keys.idx: .*or out of order; allowed are 0 to 5": sk.Plan(keys=sk.Tokens(t.idx.flip(-1), 6)),
        r"^plan.blocks.indices: got an index": lists(b.indices.clamp(max=1)),
        r"^plan.blocks.counts: not the number": lists(b.indices, b.counts + 1),
    }
    for message, plan in {**shapes, **contents}.items():
        refused(message, lambda plan=plan: sk.attend(p, plan, check=True))
        refused(message, lambda plan=plan: Pipeline([sk.Attend(check=True)])(**tensors(), plan=plan))
    for message, plan in shapes.items():
        refused(message, lambda plan=plan: sk.attend(p, plan))
    whole = sk.Plan(t, t).then(sk.Plan(blocks=b))
    torch.testing.assert_close(sk.attend(p, whole, check=True).o, sk.attend(p).o)


NUMBERS = st.one_of(st.floats(), st.integers(-5, 5), st.sampled_from([None, "x", True, math.nan]))
COUNTS = [
    (sk.TokenCoverage, "voters", 1, False),
    (sk.TokenCoverage, "pool", 1, True),
    (sk.TokenCoverage, "min_tokens", 0, False),
    *((sk.FlexPrefill, name, 1, False) for name in ("block_size", "min_budget", "max_budget")),
    *((sk.Streaming, name, least, False) for name, least in (("sinks", 0), ("window", 1), ("block_size", 1))),
    (sk.BlockTopK, "block_size", 1, False),
    *((sk.SlidingWindow, name, least, False) for name, least in (("window", 1), ("sinks", 0))),
]  # fmt: skip


@pytest.mark.parametrize("stage,name,least,odd", COUNTS, ids=[f"{c[0].__name__}.{c[1]}" for c in COUNTS])
@settings(max_examples=30)
@given(value=NUMBERS)
def test_counts_out_of_range(stage, name, least, odd, value):
    if value is None and name in ("min_budget", "max_budget"):
        return
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least and not (odd and value % 2 == 0)
    if good:
        assert getattr(stage(**{name: value}), name) == value
    else:
        refused(f"^{name}: got {re.escape(repr(value))}; allowed is", lambda: stage(**{name: value}))


RATIOS = [
    (sk.TokenCoverage, "tau", True),
    (sk.BlockTopK, "keep", False),
    (sk.FlexPrefill, "gamma", False),
    (sk.FlexPrefill, "tau", True),
]


@pytest.mark.parametrize("stage,name,zero", RATIOS)
@settings(max_examples=40)
@given(value=NUMBERS)
def test_ratios_out_of_range(stage, name, zero, value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= 1 and (zero or value > 0):
        assert getattr(stage(**{name: value}), name) == value
    else:
        refused(f"^{name}: got {re.escape(repr(value))}; allowed is", lambda: stage(**{name: value}))


def test_choices():
    refused("^per: got 'heads'; allowed are 'head', 'group', 'layer'", lambda: sk.TokenCoverage(per="heads"))
    refused("^min_budget: got 9, more than max_budget 3", lambda: sk.FlexPrefill(min_budget=9, max_budget=3))
    refused("^mode: got 'fast'", lambda: sk.Compress("fast"))
    refused("^backend: got 'cuda'; allowed are 'auto'", lambda: sk.Attend("cuda"))
    refused("^fill: got 0", lambda: sk.Decompress(0))
    refused("^patterns: got", lambda: sk.Union([]))
    refused("^patterns: got", lambda: sk.Union([sk.TokenCoverage()]))


BAD_STAGES = {
    "tokens after blocks": ([sk.Streaming(), sk.TokenCoverage()], "got TokenCoverage after Streaming; token stages"),
    "two Decompress": ([sk.Decompress(), sk.Decompress()], "got 2 Decompress steps; .* at most one"),
    "two Attend": ([sk.Attend(), sk.Pipeline([sk.Attend()])], "got 2 Attend steps"),
    "a class": ([sk.TokenCoverage], "with parentheses"),
    "a number": ([3], "got 3; allowed are stages"),
    "text": ("token_coverage", "from_spec"),
    "one stage bare": (sk.TokenCoverage(), "allowed is a list of stages"),
    "tokens after a recipe's": ([recipes.balanced(), sk.TokenCoverage()], "got TokenCoverage after BlockThr"),
}  # fmt: skip


@pytest.mark.parametrize("stages,message", BAD_STAGES.values(), ids=BAD_STAGES)
def test_bad_stages(stages, message):
    refused(f"^stages: .*{message}", lambda: Pipeline(stages))


def test_a_plain_function_that_chooses_tokens_after_blocks_is_refused_when_it_runs():
    late = lambda problem: sk.TokenCoverage(tau=0.5, voters=1, min_tokens=0, sinks=2)(problem)  # noqa: E731
    pipeline = Pipeline([sk.Streaming(1, 2, 2), late])
    refused("^stages: tokens chosen after blocks", lambda: pipeline(**tensors()))


@pytest.mark.parametrize(
    "spec,position",
    [
        ("token_coverage(tau=0.02) | flexx", 27),
        ("token_coverage(tau=)", 19),
        ("streaming |", 11),
        ("", 0),
        ("token_coverage(tau=0.1, tau=0.2)", None),
        ("token_coverage(tau=7)", 0),
        ("token_coverage(0.1, 2, 3, 4, 5, 6, 7)", 0),
        ("streaming | token_coverage(speed=1)", 12),
        ("streaming | decompress(fill=zeros) | decompress", None),
        ("decompress(fill=sliding(3))", 16),
        ("token_coverage(tau=open('x'))", 19),
        ("__import__('os').system('true')", 0),
        ("[streaming]", 0),
        ("é | streaming(", None),
    ],
)
def test_a_spec_that_does_not_parse_says_where(spec, position):
    message = "^(spec: at position|stages: )" if position is None else f"^spec: at position {position},"
    refused(message, lambda: Pipeline.from_spec(spec))


@settings(max_examples=300)
@given(st.text(alphabet="abc_()=|,.0123456789'\"[]{}*\\ \n#é", max_size=40))
def test_no_text_does_anything_but_parse_or_a_valueerror(spec):
    try:
        Pipeline.from_spec(spec)
    except ValueError as error:
        assert "position" in str(error) or str(error).startswith("stages:")


def test_blocks_of_different_sizes_do_not_mix():
    mixed = Pipeline([sk.Streaming(1, 2, 2), sk.BlockTopK(0.5, 3)])
    refused("^blocks: cannot combine .*same block_size", lambda: mixed(**tensors()))


def test_explain_says_that_the_input_is_not_finite():
    bad = tensors(q=(1, 2, 16, 4), k=(1, 2, 16, 4), v=(1, 2, 16, 4))
    bad["k"][0, 0, 3, 0], bad["v"][0, 1, 2] = float("nan"), float("inf")
    report = Pipeline([sk.BlockTopK(0.5, 4)]).explain(**bad)
    assert "k holds 1 NaN or infinite values" in str(report) and "v holds 4 NaN" in str(report)


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "4"])
def test_a_bad_window_is_named(window):
    x = torch.randn(1, 1, 8, 4)
    with pytest.raises(ValueError, match="sliding_window: got"):
        Problem.of(x, x, x, sliding_window=window)


def test_a_window_asks_for_causality():
    x = torch.randn(1, 1, 8, 4)
    with pytest.raises(ValueError, match="sliding_window: got 4 for a problem that is not causal"):
        Problem.of(x, x, x, causal=False, sliding_window=4)
