"""The leads: what they compute is what their plans say; at trivial settings they are the methods they vary."""

import json
import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import typer

from bench.leads.blocks import TokensThenBlocks
from bench.leads.chunks import Chunked
from bench.leads.judge import QUESTIONS, TEXT, Seen, judge, read, samples
from bench.leads.layers import Passed, Remembered, Reused, least_work, matched, traded
from bench.leads.near import Near, Sides, band
from bench.leads.probes import Both, Chance, LastQueries, Strided, probabilities
from bench.leads.report import VERDICTS, at_density, tables
from bench.leads.run import FIRST_SEED, done, main
from bench.leads.tokens import VotedTokens
from bench.leads.variants import DELIMITERS, Setting, variants
from bench.records import FOLDER
from sparsekit import (
    Decompress,
    FlexPrefill,
    Pipeline,
    Problem,
    SlidingWindow,
    TokenCoverage,
    oracle,
)  # fmt: skip
from sparsekit.integrations.transformers import LayerCall, sparsify
from sparsekit.integrations.transformers.schedule import by_layer
from sparsekit.schedules import Measured
from sparsekit.testbed import load_model, read_text
from sparsekit.testbed.evaluate import ask
from tests.strategies import randn

L = 300  # more than two blocks of the band, no multiple of anything
SMALL = dict(window=16, pool=3, min_tokens=8)


def problem(seed=0, L=L, H=4, G=2, D=8):
    return Problem.of(randn(seed, 1, H, L, D) * 2, randn(seed + 1, 1, G, L, D), randn(seed + 2, 1, G, L, D))


def off(p, plan, out):
    """The greatest distance from dense float64 attention under the plan's pairs."""
    truth = oracle(p, plan)
    return max((out.o - truth.o).abs().max().item(), (out.lse - truth.lse).abs().nan_to_num(0.0).max().item())


def voted(**how):
    return VotedTokens(**{"tau": 0.3} | SMALL | how)


FORCED = torch.arange(L) % 7 == 0
CHOICES = {
    "plain": voted(),
    "keep": voted(tau=0.0, keep=0.3),
    "per head": voted(budget="head"),
    "pooled": voted(budget="pool"),
    "group": voted(per="group"),
    "layer": voted(per="layer"),
    "max": voted(probe=LastQueries(16, "max")),
    "spread": voted(probe=Strided(20, 5)),
    "both": voted(probe=Both(LastQueries(16), Strided(20))),
    "chance": voted(probe=Chance()),
    "remembered": voted(probe=Remembered(window=16)),
    "forced": voted(forced=FORCED),
    "forced, all": voted(forced=FORCED | True),
    "runs": voted(segment=16),
    "runs by max": voted(segment=7, by="max"),
}
PIPELINES = {
    **{name: Pipeline([stage, Decompress(SlidingWindow(9))], break_even=0) for name, stage in CHOICES.items()},
    "near": Near(voted(), near=9, fill=SlidingWindow(9)),
    "near, wide": Near(voted(), near=200, fill=SlidingWindow(5)),
    "near, head budgets": Near(voted(budget="head"), near=9, fill=SlidingWindow(9)),
    "far": Near(replace(voted(), window=16), near=4, fill=SlidingWindow(9), far=30),
    "keys only": Near(Sides(None, voted(tau=0.0, keep=0.2)), near=12),
    "queries only": Near(Sides(voted(), None), fill=SlidingWindow(3)),
    "sides apart": Near(Sides(voted(tau=0.1), voted(tau=0.6)), near=5, fill=SlidingWindow(5)),
    "chunks": Chunked(Pipeline([TokenCoverage(0.3, **SMALL), Decompress(SlidingWindow(9))], break_even=0), 70),
    "chunks of blocks": Chunked(Pipeline([FlexPrefill(0.6, block_size=8)], break_even=0), 70),
    "last dense": Chunked(Near(voted(), near=9, fill=SlidingWindow(9)), 40, Pipeline([])),
    "one pass": Pipeline([TokensThenBlocks(voted(), 0.5, block_size=8), Decompress(SlidingWindow(9))], break_even=0),
    "blocks by votes": Pipeline([TokensThenBlocks(voted(tau=0.0), 0.5, block_size=8)], break_even=0),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_computed_is_what_the_plan_says(name):
    p = problem()
    plan, out = PIPELINES[name].run(p)
    plan.check(p, contents=True)
    pairs = plan.pairs(p)
    assert pairs.any(-1).all(), "every query sees a key, by the plan or by the fill"
    assert not (pairs & ~p.visible()).any()
    assert torch.equal(plan.work(p), pairs.sum((-1, -2)))
    assert off(p, plan, out) < 1e-12
    rows = torch.tensor([0, 5, 130, L - 1])
    assert torch.equal(plan.pairs(p, rows), pairs[:, :, rows])
    assert name == "forced, all" or plan.density(p) < 1


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_keeps_the_last_queries_and_each_kept_query_a_key(name):
    p = problem()
    kept = CHOICES[name].choose(p).kept().expand(1, -1, -1)
    kept = kept.repeat_interleave(4 // kept.shape[1], 1)
    assert kept[..., -16:].all()
    seen = CHOICES[name](p).pairs(p).any(-1)
    assert torch.equal(seen, kept)


@pytest.mark.parametrize("name", [n for n in CHOICES if n not in ("keep", "per head", "pooled", "layer", "group")])
def test_who_is_kept_changes_and_not_how_many(name):
    p, stage = problem(), CHOICES[name]
    plain = TokenCoverage(0.3, **SMALL)(p).queries.kept().sum(-1)
    kept = stage.choose(p).kept().sum(-1)
    if stage.forced is not None:
        assert (kept >= plain).all() and stage.choose(p).kept()[..., stage.forced].all()
    else:
        assert ((kept - plain >= 0) & (kept - plain < 2 * stage.segment)).all()


@pytest.mark.parametrize("per", ["head", "group", "layer"])
def test_with_its_defaults_a_voted_choice_is_token_coverage(per):
    p = problem()
    ours, theirs = voted(per=per).choose(p), TokenCoverage(0.3, **SMALL, per=per)(p).queries
    assert torch.equal(ours.kept(), theirs.kept()) and ours.full
    trivial = dict(probe=LastQueries(16), segment=1, forced=torch.zeros(L, dtype=torch.bool))
    assert torch.equal(voted(per=per, **trivial).choose(p).kept(), theirs.kept())


def test_trivial_settings_are_the_plain_method():
    p = problem()
    fill = SlidingWindow(9)
    plan, plain = Pipeline([TokenCoverage(0.3, **SMALL), Decompress(fill)], break_even=0).run(p)
    for one in (
        Near(voted(), fill=fill),
        Chunked(Pipeline([voted(), Decompress(fill)], break_even=0), L),
        Pipeline([Reused(voted(), Passed(), allowed=-1.0), Decompress(fill)], break_even=0),
        Pipeline([voted(probe=Remembered(Passed(), window=16)), Decompress(fill)], break_even=0),
        Pipeline([TokensThenBlocks(voted(), 1.0, band=10**6, block_size=8), Decompress(fill)], break_even=0),
    ):
        made, out = one.run(p)
        assert torch.equal(made.pairs(p), plan.pairs(p))
        assert (out.o - plain.o).abs().max() < 1e-12
    dense = Near(voted(tau=0.0)).run(p)
    assert dense[0].density(p) == 1


@pytest.mark.parametrize("by", ["sum", "max"])
def test_runs_are_kept_whole_and_by_their_votes(by):
    p, m = problem(L=320), 16
    kept = voted(segment=m, by=by).choose(p).kept().unflatten(-1, (-1, m))
    assert torch.equal(kept.all(-1), kept.any(-1))
    votes = torch.nn.functional.avg_pool1d(LastQueries(16)(p)[..., :-16], 3, 1, 1).unflatten(-1, (-1, m))
    votes, kept = (votes.sum(-1) if by == "sum" else votes.amax(-1)), kept.all(-1)[..., :-1]
    assert (votes.masked_fill(~kept, torch.inf).amin(-1) >= votes.masked_fill(kept, 0.0).amax(-1)).all()


@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.9])
def test_as_many_blocks_as_tokens_that_hold_gamma_of_the_votes(gamma):
    p, m = problem(L=320), 8
    within = (LastQueries(16)(p).sort(-1, descending=True).values.cumsum(-1) <= gamma).sum(-1)
    own = TokensThenBlocks(voted(tau=0.0), gamma, band=0, block_size=m)(p).blocks.mask()[:, :, -1, :-1].sum(-1)
    take = (within + 1 + m) // m
    assert ((own == take) | (own == take - 1)).all(), "the diagonal may be among them"


def test_nearness_adds_the_dropped_neighbours_of_kept_queries_and_nothing_else():
    p = problem()
    plain = Pipeline([voted(), Decompress(SlidingWindow(9))], break_even=0).decide(p)
    pairs = plain.pairs(p)
    kept = plain.queries.kept()
    distance = torch.arange(L)[:, None] - torch.arange(L)
    added = Near(voted(), near=9, fill=SlidingWindow(9)).decide(p).pairs(p) & ~pairs
    expected = (distance >= 0) & (distance < 9) & kept[..., :, None] & ~kept[..., None, :]
    assert torch.equal(added, expected) and added.any()


@pytest.mark.parametrize("window", [1, 7, 128, 129, L])
def test_the_band_is_attention_over_some_near_keys(window):
    p = problem()
    keys = torch.rand(1, 2, L, generator=torch.Generator().manual_seed(1)) < 0.4
    rows = torch.rand(1, 4, L, generator=torch.Generator().manual_seed(2)) < 0.6
    distance = torch.arange(L)[:, None] - torch.arange(L)
    seen = (distance >= 0) & (distance < window) & keys.repeat_interleave(2, 1)[..., None, :] & rows[..., None]
    scores = (p.q @ p.k.repeat_interleave(2, 1).mT * p.scale).masked_fill(~seen, -math.inf)
    out = band(p, window, keys, rows)
    assert torch.allclose(out.lse, scores.logsumexp(-1), atol=1e-12)
    assert torch.allclose(out.o, scores.softmax(-1).nan_to_num(0.0) @ p.v.repeat_interleave(2, 1), atol=1e-12)


def test_probes_read_the_weights_of_dense_attention():
    p = problem()
    scores = (p.q @ p.k.repeat_interleave(2, 1).mT * p.scale).masked_fill(~p.visible(), -math.inf)
    weights = scores.softmax(-1)
    found = torch.cat([w for _, w in probabilities(p, torch.arange(L))], 2)
    assert torch.allclose(found, weights, atol=1e-12)
    assert torch.allclose(LastQueries(150)(p), weights[:, :, -150:].mean(2), atol=1e-12)
    assert torch.allclose(LastQueries(150, "max")(p), weights[:, :, -150:].amax(2), atol=1e-12)
    rows = torch.linspace(0, L - 1, 20).round().long()
    far = weights[:, :, rows] * (torch.arange(L) <= rows[:, None] - 5)
    assert torch.allclose(Strided(20, 5)(p), far.mean(2), atol=1e-12)


def test_a_plan_is_reused_only_while_it_covers():
    stage, passed = voted(), Passed()
    reused = Reused(stage, passed, allowed=1.0)
    first = reused(problem())
    assert reused(problem()) is first, "the same votes again"
    other = reused(problem(seed=7))
    assert other is not first and torch.equal(other.queries.kept(), stage(problem(seed=7)).queries.kept())
    assert Reused(stage, passed)(problem(seed=9)) is other, "no check was asked for"
    assert Reused(stage, passed, anew=True)(problem(seed=9)) is not other


def test_layers_get_what_their_error_allows_at_the_work_of_one_setting():
    made = lambda layer, spec, density, error: Measured(layer, spec, 1.0, 1.0, density, 1.0, error)  # noqa: E731
    measured = [
        *(made(layer, "dense", 1.0, 0.0) for layer in (0, 1)),
        made(0, "a", 0.5, 0.1), made(0, "b", 0.25, 0.12), made(1, "a", 0.5, 0.3), made(1, "b", 0.25, 0.9),
    ]  # fmt: skip
    specs = lambda chosen: {layer: one.pipeline for layer, one in chosen.items()}  # noqa: E731
    assert specs(least_work(measured, 0.85)) == {0: "b", 1: "dense"}
    assert specs(traded(measured, 0.5)) == {0: "b", 1: "a"}
    assert matched(measured, traded, "a") == {0: "b", 1: "a"}
    assert matched(measured, least_work, "b") == {0: "b", 1: "b"}


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def text():
    return read_text()


@pytest.mark.parametrize("task", ["multi_value", TEXT, QUESTIONS])
def test_a_sample_is_read_at_its_length_and_judged_as_ask_does(task, model, text):
    sample = samples(text, task, 1024, 1_000_003)
    assert len(read(sample)) == 1024 and sample == samples(text, task, 1024, 1_000_003)
    how = partial(sparsify, model, Pipeline([TokenCoverage(0.5, min_tokens=32)], break_even=0))
    if task != QUESTIONS:
        assert judge(model, sample, how)[0] == ask(model, sample, how=how)
    dense, bits = judge(model, sample, partial(sparsify, model, "dense"))
    if task == TEXT:
        assert 0.2 < bits < 3
    else:
        assert dense == ask(model, sample), "read at once or in two: dense attention is the same"
        assert dense.found == dense.answers and bits < 0.05


def test_questions_are_many_and_most_lie_before_the_last_queries(text):
    sample = samples(text, QUESTIONS, 8192, 1_000_000)
    assert len(sample.values) == 24
    ends = [len(sample.answer) - value[-1] for value in sample.values]
    assert sum(end > 128 for end in ends) >= 18
    for value in sample.values:
        digits = bytes(sample.answer[i] for i in value)
        assert digits.isdigit() and sample.prompt.count(digits) >= 1, "the fact itself is in the text"


def test_every_variant_has_a_name_of_its_own_and_something_to_be_compared_with():
    found = variants()
    names = [v.name for v in found]
    assert len(set(names)) == len(names)
    labels = {v.label for v in found}
    assert all(v.plain in labels for v in found)


LAYERS = 8


def measured(specs):
    """Each spec's real density and error, as if all layers were alike."""
    return [replace(measured_once(spec), layer=layer) for spec in ("dense", *specs) for layer in range(LAYERS)]


@cache
def measured_once(spec):
    p = problem(L=560, H=2, G=1)
    plan, out = Pipeline.from_spec(spec).run(p)
    truth = oracle(p).o
    return Measured(0, spec, 1.0, plan.kept(p), plan.density(p), 1.0, ((out.o - truth).norm() / truth.norm()).item())


@pytest.mark.parametrize(
    "variant", {v.label: v for v in variants()}.values(), ids=lambda v: f"{v.lead.split()[0]}: {v.name}"
)
def test_every_variant_computes_a_legal_plan(variant):
    p = problem(L=560, H=2, G=1)
    prompt = bytes(torch.randint(10, 60, (560,), generator=torch.Generator().manual_seed(0)).tolist())
    made = variant.make(Setting(prompt, torch.device("cpu"), LAYERS, lambda: (0, 1, 2, 3), measured, min_tokens=16))
    of_layers = by_layer(made or "dense", list(range(LAYERS)))
    assert set(of_layers) == set(range(LAYERS))
    pipelines = list({id(one): one for one in of_layers.values() if one}.values())
    for n, pipeline in enumerate(pipelines):
        plan, out = pipeline.run(p)
        plan.check(p, contents=True)
        if n in (0, len(pipelines) - 1):
            pairs = plan.pairs(p)
            assert pairs.any(-1).all() or variant.label == "zeros"
            assert torch.equal(plan.work(p), pairs.sum((-1, -2)))
            assert off(p, plan, out) < 1e-12


def test_a_prompts_bytes_make_the_mask():
    setting = Setting(b"a = b\n", torch.device("cpu"), 8, tuple, lambda specs: [], 0)
    assert setting.mask(DELIMITERS).tolist() == [False, False, True, False, False, True]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A few variants on the shortest prompts."""
    path = tmp_path_factory.mktemp("leads") / "leads.jsonl"
    only = "; ".join(("neighbours | near 128, tau 0.4", "every second layer decides, tau 0.4", "base | plain, tau 0.4"))
    run = partial(main, lengths="1K", out=path, tasks="multi_key", min_tokens=32, only=only, without_base=True)
    run(prompts=1)
    before = path.read_text()
    run(prompts=1)
    assert path.read_text() == before, "what a file has is not run again"
    return [json.loads(line) for line in before.splitlines()], done(path)


def test_a_run_has_a_line_for_every_variant_and_prompt(lines):
    rows, keys = lines
    assert len(keys) == len(rows) and not any("error" in row for row in rows)
    names = {row["variant"] for row in rows}
    assert names == {"dense", "plain, tau 0.4", "near 128, tau 0.4", "every second layer decides, tau 0.4"}
    assert keys == {(name, 1024, "multi_key", FIRST_SEED) for name in names}
    for row in rows:
        assert 0 <= row["found"] <= row["answers"] and row["bits"] >= 0
        assert len(row["kept"]) == len(row["density"]) == 8
        assert row["work"] == pytest.approx(sum(row["density"]) / 8, abs=1e-5)
        assert row["reused"] == (4 if row["variant"].startswith("every second") else 0)
        if row["variant"] == "dense":
            assert row["work"] == 1 and row["found"] == row["answers"]
    near, plain = (next(r for r in rows if r["variant"] == f"{name}, tau 0.4") for name in ("near 128", "plain"))
    assert near["density"][0] > plain["density"][0] and near["kept"][0] == plain["kept"][0]


def test_a_report_pairs_prompts_and_meets_densities(lines):
    text = tables(lines[0])
    assert "## 1 kept queries see neighbours" in text and "| near 128, tau 0.4 |" in text
    made = lambda variant, seed, found, work: dict(  # noqa: E731
        variant=variant, length=9, task="multi_key", seed=seed, found=found, answers=2, bits=0.1,
        kept=[1.0], density=[work], ms=1.0,
    )  # fmt: skip
    rows = [made("plain, tau 0.4", s, 0, 0.01) for s in range(20)] + [
        made("plain, tau 0.1", s, 2, 0.16) for s in range(20)
    ]
    rows += [made("near 128, tau 0.4", s, 2, 0.04) for s in range(20)]
    line = next(line for line in tables(rows).splitlines() if line.startswith("| near"))
    assert "+1.000" in line and "+0.500" in line, "at equal tau from none to all; at equal work half way between"


def test_outside_its_curve_a_method_has_no_figure():
    curve = [(0.1, {("t", 0): 0.0}), (0.4, {("t", 0): 1.0})]
    assert at_density(curve, 0.2) == {("t", 0): pytest.approx(0.5)}
    assert at_density(curve, 0.05) is None and at_density(curve[:1], 0.1) is None


def test_a_word_no_variant_has_and_a_task_there_is_not_are_refused(tmp_path):
    with pytest.raises(typer.BadParameter, match="no variant has"):
        main(only="nonsense", out=tmp_path / "x")
    with pytest.raises(typer.BadParameter, match="multi_key"):
        main(tasks="nonsense", out=tmp_path / "x")


def test_a_seen_prefill_tells_the_part_of_the_work():
    p, seen = problem(), Seen()
    plan, out = PIPELINES["near"].run(p)
    for layer in (0, 1):
        seen.watch(LayerCall(layer, p, plan, out, 1.0))
    assert seen.line() == {
        "kept": [round(plan.kept(p), 5)] * 2, "density": [round(plan.density(p), 6)] * 2, "reused": 1, "ms": 2.0,
        "work": round(plan.density(p), 6),
    }  # fmt: skip


def test_every_lead_that_was_tried_has_a_verdict():
    tried = {json.loads(line)["variant"] for line in (FOLDER / "front" / "leads.jsonl").read_text().splitlines()}
    labels = {v.label for v in variants() if v.name in tried}
    assert labels - VERDICTS.keys() == {"dense", "dense, sparsekit", "plain", "FlexPrefill"}  # what the others vary
