import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsekit as sk
from bench.records import FOLDER, read
from bench.report import latest
from sparsekit import Pipeline, Plan, Problem, TokenCoverage, break_even

STAGE = TokenCoverage(tau=0.5, window=4, min_tokens=2)
KNOWN = break_even.Prices(1e-5, {"TokenCoverage": break_even.Price(1.5, 3000.0)})


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


def test_nothing_measured_runs_the_stages():
    assert break_even.estimate([STAGE], problem(16)) is None
    assert Pipeline([STAGE])(problem(16)).queries is not None


def test_a_stage_that_is_not_measured_runs(measured):
    assert break_even.estimate([sk.FlexPrefill()], problem(16)) is None


@given(K=st.integers(1, 400), H=st.sampled_from([1, 2, 8]), causal=st.booleans())
def test_the_estimate_counts_what_is_computed(K, H, causal):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(break_even, "prices", lambda device: KNOWN)
        p = problem(K, H, causal)
        found = break_even.estimate([STAGE], p)
    pairs = int(p.visible().expand(1, H, K, K).sum())
    assert found.dense == pytest.approx(4 * 8 * pairs / KNOWN.rate / 1e9)
    assert found.overhead == pytest.approx(max(1.5, 3000 * H * K / 1e6))
    assert found.worth == (found.overhead < break_even.SAVED * found.dense)


RECORDS = [row for row in read(FOLDER / "nvidia-h200.jsonl") if row.get("speed_up") and row["kind"] == "ours"]


@pytest.mark.parametrize("case", ["TokenCoverage, kept 0.3", "FlexPrefill, gamma 0.95", "stacked"])
def test_it_decides_as_the_records_say(case, monkeypatch):
    """Never for a pipeline that was slower than dense; not against one that was twice as fast."""
    monkeypatch.setattr(break_even, "prices", lambda device: break_even.MEASURED[9, 0])
    measured = latest(row for row in RECORDS if row["case"] == case)
    assert len(measured) >= 4
    for row in measured:
        q, k = (torch.empty(1, row["shape"][h], row["length"], row["shape"]["D"], device="meta") for h in "HG")
        found = break_even.estimate(Pipeline.from_spec(row["what"]).stages, Problem.of(q, k, k))
        assert row["speed_up"] > 1 if found.worth else row["speed_up"] < 2.5, (row["length"], row["speed_up"], found)


def test_gathering_is_the_faster_way_to_compress():
    """What Compress("auto") does is what the records say."""
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
    assert "runs dense" in str(below.notes) and [s.name for s in below.steps] == ["attend"]
    assert "runs the stages" in str(above.notes) and above.steps[0].name == "1. TokenCoverage"
    assert not any("reak-even" in note for note in Pipeline([STAGE], break_even=0).explain(*x(short)).notes)


@pytest.mark.parametrize("wrong", [-1, 1.5, "always", None, True])
def test_what_it_may_be(wrong):
    with pytest.raises(ValueError, match="break_even"):
        sk.Attend(break_even=wrong)


def test_it_is_part_of_the_spec():
    pipeline = Pipeline([STAGE, sk.Decompress(sk.SlidingWindow())], break_even=4096)
    assert "attend(break_even=4096)" in pipeline.to_spec()
    assert Pipeline.from_spec(pipeline.to_spec()) == pipeline
    assert Pipeline([pipeline], break_even=0) == Pipeline([STAGE, sk.Decompress(sk.SlidingWindow())], break_even=0)
