"""Tests of the user's own prices: their measurement, the file that keeps them, and their use by break-even."""

import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from strategies import EXAMPLES
from torch._subclasses import FakeTensorMode

import sparsekit as sk
from sparsekit import Pipeline, Plan, Problem, break_even, dispatch, prices
from sparsekit.prices import FOLDER, LEAST, SWITCH, Price, Prices, Shape, keep, may_measure, measure, price_name
from sparsekit.version import version

CPU = torch.device("cpu")
SMALL = Shape(2, 1, 16, torch.float32, (256, 512))
FOUND = Prices(0.5, {"Streaming": Price(1.0, 20.0), "BlockTopK": Price(3.0, 40.0)})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(prices, "_known", {})
    monkeypatch.setattr(prices, "_failed", set())
    prices._kept.cache_clear()
    yield tmp_path / "cache" / "prices.json"
    prices._kept.cache_clear()


@pytest.fixture
def measuring(cache, monkeypatch):
    """Replace the measurement; return the list of devices that would be measured."""
    devices = []
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(prices, "measure", lambda device: devices.append(device) or FOUND)
    return devices


def test_every_built_in_stage_is_timed_and_steps_are_told():
    steps = []
    found = measure(CPU, SMALL, steps.append)
    built_in = {price_name(stage) for stage in EXAMPLES if not hasattr(stage, "patterns")}
    assert set(found.stages) == built_in and steps == ["dense", *found.stages, "blocks", "fill"]
    each = *found.stages.values(), found.blocks, found.tokens, found.fill
    assert found.rate > 0 and found.slow >= 1 and all(price.call >= 0 and price.token >= 0 for price in each)


@pytest.mark.parametrize("slow,over", [(1.0, 7.0), (1.7, 0.5)])
def test_prices_give_back_the_times_they_are_of(slow, over, monkeypatch):
    """Check prices from made-up times: dense attention takes 40 and 80 ms, each step `over` ms at any length."""
    dense = {256: 40.0, 512: 80.0}

    def attend(plan, p):
        part = dense[p.k.shape[2]] * plan.density(p)
        part = dense[p.k.shape[2]] * replace(plan, fill=None).density(p) if plan.fill else part
        return part * (slow if plan.blocks else 1) + over * (plan != Plan()) + over * (plan.fill is not None)

    monkeypatch.setattr(prices, "_deciding_ms", lambda pipeline, p: over)
    monkeypatch.setattr(prices, "_attending_ms", attend)
    found = measure(CPU, SMALL)
    assert found.rate == pytest.approx(2 * 2 * 512 * 512 * 16 / 80.0 / 1e9) and found.slow == pytest.approx(slow)
    p = Problem.of(*(torch.zeros(1, 2, 512, 16) for _ in "qkv"))
    for price in (*found.stages.values(), found.blocks, found.tokens, found.fill):
        assert price.call == pytest.approx(over) and price.ms(p) == pytest.approx(over)


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


def test_a_source_tree_that_is_not_installed_keeps_prices_too(cache, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        version.cache_clear()
        assert sk.__version__ == "unknown" and prices.prices(CPU) is None
        keep(CPU, FOUND)
        assert prices.prices(CPU) == FOUND
    version.cache_clear()


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
    """A plan that keeps nothing still computes the last queries' pairs and the fill's."""
    stage = sk.TokenCoverage()
    monkeypatch.setattr(break_even, "prices", lambda device: Prices(1e-3, {"TokenCoverage": Price(0.0, 0.0)}))
    p = Problem.of(*(torch.zeros(1, 2, L, 16) for _ in "qkv"))
    decompress = sk.Decompress(fill or sk.Zeros(), dense_last=last)
    found = break_even.estimate([stage], p, decompress)
    pairs = sum(min(i + 1, fill.window + fill.sinks) if fill else 0 for i in range(L)) + last * L
    dense = L * (L + 1) / 2
    assert found.fixed == pytest.approx(found.dense * min(pairs / dense, 1.0), rel=0.2 if fill else 1e-9)
    assert found.worth == (found.fixed + found.attend < found.dense)
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
    assert f"Saved to {cache}" in err and "Times known here: dense" in out and "FlexPrefill" in out
    assert set(prices.prices(CPU).stages) >= {"TokenCoverage", "FlexPrefill", "Streaming"}


STAGE = sk.Streaming(sinks=1, window=64, block_size=64)


def long_problem(keys=LEAST):
    return Problem.of(*(torch.randn(1, 1, keys, 8, generator=torch.Generator().manual_seed(0)) for _ in "qkv"))


def test_where_nobody_knows_it_measures_once_says_so_and_keeps_it(measuring, cache, caplog):
    p = long_problem()
    for pipeline in (Pipeline([STAGE]), Pipeline([sk.Union([STAGE, sk.BlockTopK()])])):
        for _ in range(2):
            pipeline(p.q, p.k, p.v)
    (line,) = caplog.messages
    assert measuring == [CPU] and str(cache) in line and f"{SWITCH}=0" in line and "seconds" in line
    assert cache.exists() and prices.prices(CPU) == FOUND


@pytest.mark.parametrize(
    "stages,limit", [([STAGE], 0), ([STAGE], 100), ([STAGE, lambda p: Plan()], "auto"), ([], "auto")]
)
def test_it_never_measures_for_a_pipeline_that_does_not_ask(stages, limit, measuring):
    p = long_problem()
    Pipeline(stages, break_even=limit)(p.q, p.k, p.v)
    assert not measuring


def test_it_never_measures_where_it_would_disturb(measuring, monkeypatch):
    p, short = long_problem(), long_problem(LEAST - 1)
    pipeline = Pipeline([STAGE])
    with FakeTensorMode():
        x = torch.empty(1, 1, LEAST, 8)
        assert pipeline(x, x, x).shape == x.shape
    x = torch.empty(1, 1, LEAST, 8, device="meta")
    assert pipeline(x, x, x).shape == x.shape
    assert not may_measure([STAGE], replace(p, heads_group=object())), "ranks must decide alike"
    monkeypatch.setattr(prices, "_known", {prices._here(CPU): replace(FOUND, stages={})})
    assert not may_measure([STAGE], p), "the device is known, but for this stage, which runs as ever"
    monkeypatch.setattr(prices, "_known", {})
    with dispatch.timed(lambda op: nullcontext()):
        assert pipeline.decides(p)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not may_measure([STAGE], p)
    monkeypatch.setenv(SWITCH, "0")
    assert pipeline.decides(p) and pipeline.decides(short), "as before: stages always run"
    assert not measuring


def test_a_short_problem_is_dense_unmeasured_and_explain_says_so(measuring):
    p = long_problem(LEAST - 1)
    assert Pipeline([STAGE])(p) == Plan() and Pipeline([STAGE], break_even=0)(p) != Plan()
    said = Pipeline([STAGE]).explain(p.q, p.k, p.v).dense
    assert "which is not measured yet: that takes 2,048 tokens; attend(break_even=0)" in said
    assert not measuring


def test_a_folder_that_cannot_be_written_is_said_once_and_measured_once(measuring, cache, caplog):
    cache.parent.write_text("a file")
    for _ in range(3):
        Pipeline([STAGE])(long_problem())
    assert measuring == [CPU] and prices.prices(CPU) == FOUND
    assert sum("cannot be written" in line for line in caplog.messages) == 1


def test_what_cannot_be_measured_runs_and_is_said_once(measuring, monkeypatch, caplog):
    def fails(device):
        measuring.append(device)
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(prices, "measure", fails)
    for _ in range(3):
        assert Pipeline([STAGE])(long_problem()) != Plan()
    assert measuring == [CPU] and sum("out of memory. Stages always run" in line for line in caplog.messages) == 1


def test_threads_at_once_measure_once(measuring, monkeypatch):
    monkeypatch.setattr(prices, "measure", lambda device: time.sleep(0.1) or measuring.append(device) or FOUND)
    p = long_problem()
    threads = [threading.Thread(target=lambda: Pipeline([STAGE])(p)) for _ in range(4)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert measuring == [CPU]


def test_the_caller_is_not_disturbed(cache, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(prices, "ON_CPU", SMALL)
    p, threads = long_problem(), torch.get_num_threads()
    state = torch.manual_seed(3).get_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu"):
            Pipeline([STAGE]).decides(p)
            assert torch.is_inference_mode_enabled() and torch.empty(1).is_meta and torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64 and torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert set(prices.prices(CPU).stages) >= {"TokenCoverage", "FlexPrefill", "Streaming"}


def test_what_is_measured_does_not_depend_on_the_callers_modes(measuring, monkeypatch):
    def modes():
        return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.empty(0).is_meta

    seen = []
    monkeypatch.setattr(prices, "measure", lambda device: seen.append(modes()) or FOUND)
    p = long_problem()
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu"):
        Pipeline([STAGE]).decides(p)
        assert modes() == (True, True, True)
    assert seen == [(False, False, False)]
