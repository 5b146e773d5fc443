import copy
import pickle
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from closeness import error
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekit as sk
from bench.records import FOLDER, read
from bench.speed.report import latest
from sparsekit import Pipeline, Plan, Problem, TokenCoverage, break_even, dispatch, oracle, prices, recipes
from sparsekit.evaluation.records import Records

STAGE = TokenCoverage(tau=0.5, voters=4, min_tokens=2, sinks=2)
KNOWN = prices.Prices(1e-5, {"TokenCoverage": prices.Price(1.5, 3000.0)})


def problem(K, H=2, causal=True):
    q = torch.randn(1, H, K, 8, generator=torch.Generator().manual_seed(0))
    return Problem.of(q, q, q, causal)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(break_even, "prices", lambda device: KNOWN)


@pytest.mark.parametrize("keys", [0, 63, 64])
def test_from_so_many_keys_on_the_stages_run(keys):
    assert Pipeline([STAGE], break_even=keys)(problem(64)).queries is not None
    assert Pipeline([STAGE, sk.Attend(break_even=keys)])(problem(64)).queries is not None


def test_below_it_attention_is_dense():
    p = problem(64)
    pipeline = Pipeline([STAGE], break_even=65)
    assert pipeline(p) == Plan()
    assert torch.equal(pipeline(p.q, p.k, p.v), Pipeline([])(p.q, p.k, p.v))


class Ops(TorchDispatchMode):
    """Records the torch operations inside the context that compute something."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if not op.is_view:
            self.seen.append(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


@given(first=problems(), second=st.integers(1, 3), keys=st.sampled_from([None, 1000]))
def test_below_it_a_call_of_known_shapes_is_the_kernel_alone(first, second, keys):
    """Other values may reuse the kernel; another shape, causality or scale may not."""
    pipeline = Pipeline([] if keys is None else [STAGE], break_even=keys)
    causal, scale = first.causal, first.scale
    pipeline(first.q, first.k, first.v, causal=causal)
    other = replace(first, q=-2 * first.q, k=first.k + 1, v=1 - first.v)
    with Ops() as ops:
        found = pipeline(other.q, other.k, other.v, causal=causal)
    assert error(found, oracle(other).o) < 1e-10
    assert causal and first.q.shape[2] != first.k.shape[2] or "arange" not in ops.seen and "max" not in ops.seen
    for changed in (
        replace(first, scale=scale * 2),
        Problem.of(first.q[:, :, -second:], first.k, first.v, causal),
        Problem.of(first.q[:, :, -1:], first.k, first.v, not causal),
    ):
        found = pipeline(changed.q, changed.k, changed.v, causal=changed.causal, scale=changed.scale)
        assert error(found, oracle(changed).o) < 1e-10


def test_what_was_wrong_stays_wrong():
    """Bad input raises also after a good call of the same shape."""
    q = problem(16).q
    pipeline = Pipeline([STAGE], break_even=100)
    for _ in range(2):
        pipeline(q, q, q)
        for name, bad in (("k", q.double()), ("k", q[..., :4]), ("v", q[:, :, :3]), ("k", None), ("q", "no tensor")):
            with pytest.raises(ValueError, match=f"^{name}: "):
                pipeline(**{"q": q, "k": q, "v": q, name: bad})
        pipeline(q, q, q, scale=1.0)
        for bad in ([1], True, float("nan")):
            with pytest.raises(ValueError, match="^scale: "):
                pipeline(q, q, q, scale=bad)


def test_a_clock_sees_every_call():
    p, pipeline, seen = problem(16), Pipeline([STAGE], break_even=100), []

    def clock(op):
        seen.append(op)
        return nullcontext()

    pipeline(p.q, p.k, p.v)
    with dispatch.timed(clock):
        pipeline(p.q, p.k, p.v)
    pipeline(p.q, p.k, p.v)
    assert seen == ["attend"]


def test_it_remembers_no_more_shapes_than_it_may(monkeypatch):
    monkeypatch.setattr(sk.pipeline, "SHAPES", 3)
    pipeline = Pipeline([])
    for K in range(1, 12):
        pipeline(*[problem(K).q] * 3)
    assert len(pipeline._dense) <= 3


def test_a_pipeline_that_was_called_is_copied():
    p, pipeline = problem(16), Pipeline([STAGE], break_even=100)
    expected = pipeline(p.q, p.k, p.v)
    for copied in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert copied == pipeline and torch.equal(copied(p.q, p.k, p.v), expected)


def test_nothing_measured_runs_the_stages():
    assert break_even.estimate([STAGE], problem(16)) is None
    assert Pipeline([STAGE])(problem(16)).queries is not None


def test_a_stage_that_is_not_measured_runs(measured, monkeypatch):
    assert break_even.estimate([sk.FlexPrefill()], problem(16)) is None
    monkeypatch.setattr(break_even, "prices", lambda device: prices.MEASURED[9, 0])
    each, mean = (sk.BlockThreshold(queries=queries) for queries in ("each", "mean"))
    for stage in (each, mean):
        assert not break_even.estimate([stage], problem(16)).worth


@pytest.mark.parametrize("name", recipes.PIPELINES)
def test_a_recipe_is_dense_on_a_short_prompt(name, monkeypatch):
    monkeypatch.setattr(break_even, "prices", lambda device: prices.MEASURED[9, 0])
    q, k = (torch.randn(1, h, 1024, 128) for h in (32, 8))
    assert recipes.PIPELINES[name]()(Problem.of(q, k, k)) == Plan()


@given(K=st.integers(1, 400), H=st.sampled_from([1, 2, 8]), causal=st.booleans())
def test_the_estimate_counts_what_is_computed(K, H, causal):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(break_even, "prices", lambda device: KNOWN)
        p = problem(K, H, causal)
        found = break_even.estimate([STAGE], p)
    pairs = int(p.visible().expand(1, H, K, K).sum())
    assert found.dense == pytest.approx(4 * 8 * pairs / KNOWN.rate / 1e9)
    assert found.overhead == pytest.approx(max(1.5, 3000 * H * K / 1e6))
    assert found.attend <= found.dense and found.worth == (found.overhead + found.attend < found.dense)


EVERY = [row for row in read(FOLDER / "nvidia-h200.jsonl") if row.get("speed_up")]
RECORDS = [row for row in EVERY if row["kind"] == "ours"]


IN_ROWS = [row for row in RECORDS if row.get("row_ms") and row["what"] != "attend"]  # whole pipelines
OF_A_MODEL = [
    (row, dense[row["length"]])
    for rows in [[x for x in Records(FOLDER / "front" / "qwen2.5-coder-1.5b.jsonl").lines if x["kind"] == "price"]]
    for dense in [{x["length"]: x["attention_ms"]["p50"] for x in rows if x["pipeline"] == "dense, sparsekit"}]
    for row in rows
    if row["pipeline"] in recipes.PIPELINES
]


def decided(spec: str, H: int, G: int, L: int, D: int) -> bool:
    pipeline = Pipeline.from_spec(spec)
    q, k = (torch.empty(1, h, L, D, device="meta") for h in (H, G))
    return break_even.estimate(pipeline.stages, Problem.of(q, k, k), pipeline.decompress).worth


def test_there_are_records_to_decide_by():
    cases = [row["case"] for row in latest(IN_ROWS)]
    assert sum(cases.count(case) >= 4 for case in set(cases)) >= 4


@pytest.mark.parametrize("case", dict.fromkeys(row["case"] for row in IN_ROWS))
def test_it_decides_as_the_records_say(case, monkeypatch):
    """Check that it runs no stages that were over 2% slower than dense, and runs all that were 3 times as fast."""
    monkeypatch.setattr(break_even, "prices", lambda device: prices.MEASURED[9, 0])
    for row in latest(row for row in IN_ROWS if row["case"] == case):
        same = [x for x in EVERY if all(x[name] == row[name] for name in ("run", "length", "shape", "inputs"))]
        dense = min(x["row_ms"]["p50"] for x in same if x["kind"] == "dense")
        faster, shape = dense / row["row_ms"]["p50"], row["shape"]
        sparse = decided(row["what"], *(shape[h] for h in "HG"), row["length"], shape["D"])
        assert faster > 0.98 if sparse else faster < 3, (row["length"], shape, faster)


@pytest.mark.parametrize("row,dense", OF_A_MODEL, ids=lambda x: f"{x['pipeline']}-{x['length']}" if x is dict else None)
def test_a_recipe_is_never_slower_than_dense_in_a_model(row, dense, monkeypatch):
    monkeypatch.setattr(break_even, "prices", lambda device: prices.MEASURED[9, 0])
    faster = dense / row["attention_ms"]["p50"]
    assert faster > 0.98 if decided(row["what"], 12, 2, row["length"], 128) else faster < 1.1


def test_gathering_is_the_faster_way_to_compress():
    """Check that Compress("auto") chooses what the records favour."""
    rows = {(row["case"], row["backend"], row["length"]): row["ms"]["p50"] for row in RECORDS}
    indexed = [key for key in rows if key[0].endswith(", indexed")]
    assert len(indexed) >= 6
    for case, backend, length in indexed:
        assert rows[case.removesuffix(", indexed"), backend, length] < rows[case, backend, length]


def test_explain_says_what_decides(measured):
    short, long = problem(16), problem(512)
    x = lambda p: (p.q, p.k, p.v)  # noqa: E731
    pipeline = Pipeline([STAGE])
    assert pipeline(short) == Plan() and pipeline(long).queries is not None
    below, above = (pipeline.explain(*x(p)) for p in (short, long))
    assert [s.name for s in below.steps] == ["attend"] and not any("reak-even" in note for note in below.notes)
    lines = [line for line in str(below).splitlines() if line.startswith("Attention ran dense: ")]
    assert lines == [
        "Attention ran dense: 16 tokens are below the break-even on this device, because the prompt is too short: "
        "sparse attention is estimated at 1.62 ms (1.50 to decide, 0.12 to attend to about 14% of the pairs), dense at "
        "0.87 ms; attend(break_even=0) in the spec always runs it"
    ]
    assert "runs the stages" in str(above.notes) and above.steps[0].name == "1. TokenCoverage"
    assert above.dense is None and "ran dense" not in str(above)
    forced = Pipeline([STAGE], break_even=0).explain(*x(short))
    assert forced.dense is None and not any("reak-even" in note for note in forced.notes)


@pytest.mark.parametrize(
    "found,cause",
    [
        (break_even.Estimate(1.0, 2.0, 0.5, 3.0), "the prompt is too short"),
        (break_even.Estimate(10.0, 6.0, 5.0), "the prompt is too short"),
        (break_even.Estimate(10.0, 1.0, 9.5), "the stages keep too much"),
        (break_even.Estimate(10.0, 1.0, 7.0, 3.0), "the fill and the last queries take too long"),
        (break_even.Estimate(10.0, 1.0, 10.0, 11.0), "the fill and the last queries take too long"),
    ],
)
def test_the_cause_is_what_decides(found, cause):
    assert not found.worth and found.cause().startswith(cause) and f"{found.sparse:.2f} ms" in found.cause()


def test_who_set_a_limit_or_has_last_queries_alone_is_told_so():
    p = problem(64)
    said = lambda *stages, **more: Pipeline(stages, **more).explain(p.q, p.k, p.v).dense  # noqa: E731
    assert said(STAGE, break_even=65).startswith("64 tokens are below the break-even of 65; attend(break_even=0)")
    assert "all 64 queries are among the last 64, which see everything" in said(STAGE, sk.Decompress(dense_last=64))
    assert said(TokenCoverage(min_tokens=64)) == "its pipeline keeps everything at 64 tokens"
    assert said() is None


@pytest.mark.parametrize("wrong", [-1, 1.5, "always", None, True])
def test_what_it_may_be(wrong):
    with pytest.raises(ValueError, match="break_even"):
        sk.Attend(break_even=wrong)


def test_it_is_part_of_the_spec():
    pipeline = Pipeline([STAGE, sk.Decompress(sk.SlidingWindow())], break_even=4096)
    assert "attend(break_even=4096)" in pipeline.to_spec()
    assert Pipeline.from_spec(pipeline.to_spec()) == pipeline
    assert Pipeline([pipeline], break_even=0) == Pipeline([STAGE, sk.Decompress(sk.SlidingWindow())], break_even=0)


def known_apart(monkeypatch, search, slow=1.0, step=0.0):
    """Set prices: dense attention of 4,096 keys takes 100 ms, a search `search` ms, a step to attend `step` ms."""
    rate = 2 * 4096 * 4097 / 2 * 16 / 100 / 1e9
    each = {name: prices.Price(search, 0.0) for name in ("TokenCoverage", "FlexPrefill", "Streaming", "BlockTopK")}
    parts = prices.Price(step, 0.0)
    found = prices.Prices(rate, each, slow, parts, parts, prices.Price(30.0, 0.0), apart=True)
    monkeypatch.setattr(break_even, "prices", lambda device: found)


COVERAGE, WINDOW = TokenCoverage(tau=0.06, voters=16, min_tokens=0), sk.Decompress(sk.SlidingWindow())


@pytest.mark.parametrize(
    "stages,search,slow,step,runs",
    [
        ([sk.Streaming(128, 1024)], 1.0, 1.0, 0.0, True),
        ([sk.Streaming(128, 1024)], 1.0, 2.0, 0.0, False),  # half of the pairs, at half the rate
        ([sk.Streaming(128, 1024)], 1.0, 1.8, 0.0, True),  # the kept pairs are known, not estimated
        ([sk.Streaming(128, 3000)], 1.0, 1.2, 0.0, False),
        ([sk.BlockTopK(0.4)], 1.0, 2.0, 0.0, True),
        ([sk.BlockTopK(0.6)], 1.0, 2.0, 0.0, False),
        ([COVERAGE], 60.0, 1.0, 0.0, True),
        ([COVERAGE], 80.0, 1.0, 0.0, False),
        ([COVERAGE], 60.0, 1.0, 30.0, False),  # gathering and scattering take most of the time
        ([COVERAGE, WINDOW], 40.0, 1.0, 0.0, True),
        ([COVERAGE, WINDOW], 60.0, 1.0, 0.0, False),  # the fill takes most of the time
        ([COVERAGE, sk.Decompress(dense_last=1024)], 40.0, 1.0, 0.0, False),  # the last rows take half of the pairs
        ([TokenCoverage(min_tokens=4000)], 1.0, 1.0, 0.0, False),
        ([COVERAGE, sk.FlexPrefill()], 55.0, 1.0, 0.0, False),
    ],
)
def test_where_deciding_and_attending_have_their_own_prices(stages, search, slow, step, runs, monkeypatch):
    known_apart(monkeypatch, search, slow, step)
    q = torch.zeros(1, 1, 4096, 8)
    assert Pipeline(stages).decides(Problem.of(q, q, q)) == runs


@pytest.mark.parametrize("slow,runs", [(1.0, True), (2.2, False)])
def test_a_plan_that_does_not_pay_is_not_run(slow, runs, monkeypatch):
    """On random tokens the stage keeps about three quarters of the pairs."""
    p, stages = problem(4096, 1), [sk.FlexPrefill()]
    known_apart(monkeypatch, 1.0, slow)
    kept = Pipeline(stages, break_even=0)(p)
    assert 0.7 < kept.density(p) < 0.95 and Pipeline(stages).decides(p)
    assert Pipeline(stages)(p) == (kept if runs else Plan())
    assert break_even.gain(kept, p) == pytest.approx(100 - 100 * slow * kept.density(p), abs=5 * slow)
    same = torch.equal(Pipeline(stages)(p.q, p.k, p.v), Pipeline([])(p.q, p.k, p.v))
    assert same != runs


@pytest.mark.parametrize("search,calls,most", [(10.0, 40, 4), (1.0, 12, 6), (50.0, 30, 1)])
def test_searches_in_vain_cost_a_hundredth_of_dense_attention(search, calls, most, monkeypatch):
    known_apart(monkeypatch, search)
    pipeline, seen, p = Pipeline([COVERAGE]), [], problem(4096, 1)
    monkeypatch.setattr(sk.pipeline, "gain", lambda plan, p: seen.append(1) and None or -1.0 if plan != Plan() else 0.0)
    for _ in range(calls):
        plan, _ = pipeline.run(p)
        assert plan == Plan()
    assert 1 <= len(seen) <= most
    seen.clear()
    pipeline.plan(p.q, p.k, p.v), pipeline.plan(p.q, p.k, p.v)
    assert len(seen) == 2, "who asks for the plan gets what the tensors say"


def test_plans_that_pay_make_up_for_searches_in_vain(monkeypatch):
    """Layers share a pipeline: one layer whose plans never pay does not stop the others' searches."""
    known_apart(monkeypatch, 10.0)
    pipeline, p = Pipeline([COVERAGE]), problem(4096, 1)
    gains = iter([50.0, -1.0] * 10)
    ran = []
    for _ in range(10):
        value = next(gains)
        monkeypatch.setattr(sk.pipeline, "gain", lambda plan, p, value=value: value if plan != Plan() else 0.0)
        ran.append(pipeline.run(p)[0] != Plan())
    assert ran == [True, False] * 5


def test_explain_says_that_what_is_kept_does_not_pay(monkeypatch):
    p = problem(4096, 1)
    known_apart(monkeypatch, 80.0)
    assert "tokens are below the break-even on this device" in Pipeline([COVERAGE]).explain(p.q, p.k, p.v).dense
    known_apart(monkeypatch, 1.0, slow=2.2)
    pipeline = Pipeline([sk.FlexPrefill()])
    report = pipeline.explain(p.q, p.k, p.v)
    assert report.steps[0].name == "1. FlexPrefill" and report.steps[0].density < 1 and report.steps[-1].density == 1
    cause = "because the stages keep too much: sparse attention"
    assert report.dense.startswith(f"the plan of 4,096 tokens is slower than dense attention, {cause}")
    assert ", dense at 100.00 ms; attend(break_even=0) in the spec" in report.dense
    assert f"{report.steps[0].density:.1f}"[:3] == f"{pipeline.lost(p).kept:.1f}"
    assert break_even.why_whole(pipeline, p) == report.dense  # a model's handle shows this text
    assert Pipeline([sk.FlexPrefill()], break_even=0).explain(p.q, p.k, p.v).dense is None


@given(sinks=st.sampled_from([0, 128, 256]), window=st.integers(1, 5000), Q=st.sampled_from([512, 2048, 4096]))
def test_of_streaming_the_part_is_known(sinks, window, Q):
    k = torch.zeros(1, 1, 4096, 1)
    p = Problem.of(k[:, :, :Q], k, k)
    stage = sk.Streaming(sinks, window)
    kept = Pipeline([stage], break_even=0)(p).density(p)
    assert break_even._part(stage, p) == pytest.approx(kept, abs=128 / 2048)  # half a block of what a query sees
