"""Times that a user measures: taken by calls, kept in a file, and used where a pipeline decides whether it pays."""

import json

import pytest
import torch
from strategies import EXAMPLES

import sparsekit as sk
from sparsekit import Pipeline, Plan, Problem, break_even, dispatch, prices
from sparsekit.prices import FOLDER, Price, Prices, Shape, keep, measure, price_name

CPU = torch.device("cpu")
SMALL = Shape(2, 1, 16, torch.float32, (256, 512))
FOUND = Prices(0.5, {"Streaming": Price(1.0, 20.0), "BlockTopK": Price(3.0, 40.0)})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    prices._kept.cache_clear()
    yield tmp_path / "cache" / "prices.json"
    prices._kept.cache_clear()


def test_every_built_in_stage_is_timed_and_steps_are_told(monkeypatch):
    steps = []
    found = measure(CPU, SMALL, steps.append)
    built_in = {price_name(stage) for stage in EXAMPLES if not hasattr(stage, "patterns")}
    assert set(found.stages) == built_in and steps == ["dense", *found.stages]
    assert found.rate > 0 and all(price.call >= 0 and price.token >= 0 for price in found.stages.values())


@pytest.mark.parametrize("density,over", [(0.25, 7.0), (1.0, 0.5)])
def test_a_price_is_what_a_call_takes_beyond_its_part_of_the_dense_time(density, over, monkeypatch):
    """Dense attention takes 40 ms of the first length and 80 of the second."""
    dense = {256: 40.0, 512: 80.0}
    monkeypatch.setattr(Plan, "density", lambda plan, p: density)
    monkeypatch.setattr(
        prices,
        "_ms",
        lambda pipeline, p: dense[p.k.shape[2]] * (density if pipeline.stages else 1) + over * bool(pipeline.stages),
    )
    found = measure(CPU, SMALL)
    assert found.rate == pytest.approx(2 * 2 * 512 * 512 * 16 / 80.0 / 1e9)
    for price in found.stages.values():
        assert price.call == pytest.approx(over)
        assert price.ms(Problem.of(*(torch.zeros(1, 2, 512, 16) for _ in "qkv"))) == pytest.approx(over)


def test_what_was_measured_is_kept_and_read(cache):
    assert prices.prices(CPU) is None
    assert keep(CPU, FOUND) == cache and prices.prices(CPU) == FOUND
    keep(CPU, newer := Prices(1.0, {}))
    assert prices.prices(CPU) == newer and len(json.loads(cache.read_text())) == 1
    assert [path.name for path in cache.parent.iterdir()] == ["prices.json"], "nothing half-written is left"


def test_times_of_another_torch_or_machine_do_not_count(cache, monkeypatch):
    keep(CPU, FOUND)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    prices._kept.cache_clear()
    assert prices.prices(CPU) is None
    keep(CPU, FOUND)
    assert len(json.loads(cache.read_text())) == 2, "nothing is lost"


def test_a_file_that_cannot_be_read_is_said_and_nothing_is_known(cache, caplog):
    cache.parent.mkdir()
    cache.write_text("{")
    assert prices.prices(CPU) is None and prices.prices(CPU) is None
    (line,) = caplog.messages
    assert str(cache) in line and "sparsekit backends --measure" in line


def test_a_pipeline_decides_by_what_was_measured(cache):
    short, long = (Problem.of(*(torch.randn(1, 2, L, 16) for _ in "qkv")) for L in (512, 8192))
    pipeline = Pipeline([sk.Streaming(sinks=1, window=64, block_size=64)])
    assert pipeline.decides(short), "nothing is known"
    keep(CPU, FOUND)
    assert not Pipeline(pipeline.stages).decides(short) and Pipeline(pipeline.stages).decides(long)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(break_even, "prices", lambda device: FOUND)


def test_a_union_costs_what_its_patterns_cost(known):
    p = Problem.of(*(torch.zeros(1, 2, 512, 16) for _ in "qkv"))
    both = break_even.estimate([sk.Union([sk.Streaming(), sk.BlockTopK()])], p)
    assert both.overhead == sum(break_even.estimate([stage], p).overhead for stage in (sk.Streaming(), sk.BlockTopK()))
    assert break_even.estimate([sk.Union([sk.Streaming(), lambda problem: Plan()])], p) is None


@pytest.mark.parametrize("L,last,fill", [(512, 0, None), (512, 100, None), (300, 0, sk.SlidingWindow(40, sinks=3)),
                                         (512, 512, sk.SlidingWindow(1000, sinks=0))])  # fmt: skip
def test_what_is_never_left_out_counts(L, last, fill, monkeypatch):
    """The pairs of a plan that keeps nothing: those of its last queries, and of the fill of every query."""
    stage = sk.TokenCoverage()
    monkeypatch.setattr(break_even, "prices", lambda device: Prices(1e-3, {"TokenCoverage": Price(0.0, 0.0)}))
    p = Problem.of(*(torch.zeros(1, 2, L, 16) for _ in "qkv"))
    decompress = sk.Decompress(fill or sk.Zeros(), dense_last=last)
    found = break_even.estimate([stage], p, decompress)
    pairs = sum(min(i + 1, fill.window + fill.sinks) if fill else 0 for i in range(L)) + last * L
    dense = L * (L + 1) / 2
    assert found.beside == pytest.approx(found.dense * min(pairs / dense, 1.0), rel=0.2 if fill else 1e-9)
    assert found.worth == (found.beside < break_even.SAVED * found.dense)
    of_blocks = break_even.estimate([sk.Streaming()], p, decompress)
    assert of_blocks is None, "no price, no estimate"


def test_the_command_measures_and_says_what_is_known(cache, monkeypatch, capsys):
    from sparsekit.commands import backends

    monkeypatch.setattr(prices, "ON_CPU", SMALL)
    monkeypatch.setattr(dispatch.torch.cuda, "is_available", lambda: False)
    backends.backends()
    assert "No times are known here" in capsys.readouterr().out
    backends.backends(measure_here=True)
    out, err = capsys.readouterr()
    assert f"Kept in {cache}" in err and "Times known here: dense" in out and "FlexPrefill" in out
    assert set(prices.prices(CPU).stages) >= {"TokenCoverage", "FlexPrefill", "Streaming"}
