"""Tests of `compare`: its records, the continuation of a run that was cut off, and the rows, page and picture."""

import json
import time
import warnings
from copy import deepcopy

import matplotlib.image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import END, save_tiny_llama
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsekit import Pipeline, Plan
from sparsekit.evaluation.comparison import Prompts, compare
from sparsekit.evaluation.page import write_page
from sparsekit.evaluation.picture import draw_front
from sparsekit.evaluation.records import Records, fingerprint
from sparsekit.evaluation.rows import front, pareto, ranked, that_count
from sparsekit.testbed import read_text
from sparsekit.testbed.source import Bytes

TEXT = read_text()
SOURCE = Bytes(TEXT)
LAYERS = 4
BLIND = "streaming(sinks=1, window=1, block_size=1)"
NARROW = "streaming(sinks=16, window=64, block_size=16)"
PIPELINES = {spec: Pipeline.from_spec(spec) for spec in (BLIND, NARROW)}
PROMPTS = Prompts(SOURCE, ("single_key", "multi_value"), (1024, 1100), each=2, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a small model with random weights; it answers nonsense, but quickly."""
    path = tmp_path_factory.mktemp("model")
    save_tiny_llama(path)
    made = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa").eval()
    made.lm_head.weight.data[END] = 0  # so that it answers bytes
    return made


def run(model, path=None, pipelines=PIPELINES, prompts=PROMPTS, timed=1, **how):
    records = Records(path)
    compare(model, pipelines, prompts, records, name="tiny", timed=timed, **how)
    return records.lines


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Return the records file of a run that was not interrupted."""
    path = tmp_path_factory.mktemp("records") / "whole.jsonl"
    run(model, path)
    return path


def answers(lines):
    """Return the answers by question, and check that each question occurs once."""
    found = [line for line in lines if line["kind"] == "answers"]
    by = {(x["pipeline"], x["length"], x["task"], x["seed"]): (x["answer"], x["found"], x["answers"]) for x in found}
    assert len(by) == len(found), "a question was asked twice"
    return by


def priced(lines):
    return [(x["pipeline"], x["length"]) for x in lines if x["kind"] == "price" and not x["dense"]]


def test_every_pipeline_is_asked_everything_and_priced_beside_dense(whole, model):
    lines = Records(whole).lines
    assert len(answers(lines)) == 3 * 2 * 2 * 2
    assert sorted(priced(lines)) == sorted((name, length) for name in PIPELINES for length in PROMPTS.lengths)
    assert lines[0]["kind"] == "run" and lines[0]["model"] == "tiny" and lines[0]["dtype"] == "float32"
    assert len({line["run"] for line in lines}) == 1
    assert {x["pipeline"] for x in lines if x["kind"] == "price" and x["dense"]} == {"dense", "dense, sparsekit"}
    before = whole.read_bytes()
    steps = []
    run(model, whole, on_step=lambda *step: steps.append(step))
    assert whole.read_bytes() == before and not steps, "nothing was left to do"


@pytest.mark.parametrize("part", [0.0, 0.3, 0.65, 0.97])
def test_a_run_that_was_cut_off_anywhere_goes_on(model, whole, tmp_path, part):
    path, text = tmp_path / "cut.jsonl", whole.read_bytes()
    cut = text[: round(part * len(text))]
    path.write_bytes(cut)
    kept = cut[: cut.rfind(b"\n") + 1]
    assert Records(path).torn == len(cut) - len(kept)
    path.write_bytes(cut)
    steps = []
    lines = run(model, path, on_step=lambda *step: steps.append(step))
    assert path.read_bytes().startswith(kept), "lines are never changed"
    assert answers(lines) == answers(Records(whole).lines) == answers(Records(path).lines)
    assert sorted(priced(lines)) == sorted(priced(Records(whole).lines)), "priced once"
    assert steps[-1][0] == steps[-1][1] == len(steps)
    for ours, theirs in zip(front(lines), front(Records(whole).lines), strict=True):
        assert (ours.pipeline, ours.length, ours.right, ours.tasks, ours.difference) == (
            theirs.pipeline, theirs.length, theirs.right, theirs.tasks, theirs.difference
        )  # fmt: skip
        assert ours.speed_up is not None and (ours.kept, ours.density) == (theirs.kept, theirs.density)


def test_a_run_goes_on_whatever_its_parameters_were_called_when_it_began(model, tmp_path):
    path, spec = tmp_path / "old.jsonl", "token_coverage(tau=0.3, voters=16, min_tokens=16)"
    prompts = Prompts(SOURCE, ("single_key",), (1024,), each=1)
    run(model, path, {spec: Pipeline.from_spec(spec)}, prompts)
    path.write_text(path.read_text().replace("voters=16", "window=16"))
    before, old = path.read_bytes(), spec.replace("voters", "window")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        run(model, path, {spec: Pipeline.from_spec(spec)}, prompts)
    with pytest.warns(DeprecationWarning, match="'window' is the old name of 'voters'"):
        run(model, path, {old: Pipeline.from_spec(old)}, prompts)
    assert path.read_bytes() == before, "nothing was left to do"


def test_more_questions_and_pipelines_are_added_to_what_is_there(model, whole, tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_bytes(whole.read_bytes())
    more = Prompts(SOURCE, PROMPTS.tasks, (1024,), each=3, seed=3)
    third = {"mine": Pipeline.from_spec("block_topk(keep=0.1, block_size=16)")}
    lines = run(model, path, PIPELINES | third, more)
    new = [line for line in lines if line["run"] != lines[0]["run"]]
    asked = {(x["pipeline"], x["task"], x["seed"]) for x in new if x["kind"] == "answers"}
    assert asked == {(name, task, 5) for name in ("dense", *PIPELINES) for task in more.tasks} | {
        ("mine", *key) for key in more.keys()
    }
    assert priced(new) == [("mine", 1024)]
    again = run(model, path, PIPELINES | third, more, again=True)
    assert priced(again[len(lines) :]) == [(name, 1024) for name in (*PIPELINES, "mine")]
    assert not [line for line in again[len(lines) :] if line["kind"] == "answers"]


def test_each_pass_runs_the_pipeline_and_a_time_is_that_of_its_attention(model):
    calls = []

    def slow(problem):
        calls.append(problem.q.shape[2])
        time.sleep(0.03)
        return Plan()

    prompts = Prompts(SOURCE, ("single_key",), (1024,), each=1)
    lines = run(model, None, {"slow": Pipeline([slow], break_even=10**6)}, prompts, timed=2)
    passes = 2 * 2 + 1  # each prompt is read once watched and once timed; one more pass asks
    assert calls == [1024] * LAYERS * passes, "however short"
    price = {line["pipeline"]: line for line in lines if line["kind"] == "price"}
    for name, one in price.items():
        for which in ("attention_ms", "first_token_ms"):
            assert 0 < one[which]["p20"] <= one[which]["p50"] <= one[which]["p80"]
        assert one["attention_ms"]["p20"] < one["first_token_ms"]["p20"], name
    assert price["slow"]["attention_ms"]["p20"] > LAYERS * 30
    assert price["dense"]["attention_ms"]["p20"] < price["slow"]["attention_ms"]["p20"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward, "the clock is gone"
    assert not price["slow"]["ran_dense"] and model.config._attn_implementation == "sdpa"


def test_a_case_is_made_once_for_all_pipelines(model, monkeypatch):
    made, case = [], Bytes.case
    monkeypatch.setattr(Bytes, "case", lambda self, *key: made.append(key) or case(self, *key))
    prompts = Prompts(SOURCE, ("single_key", "multi_key"), (1024,), each=1)
    checked = len(made)
    lines = run(model, None, PIPELINES, prompts, timed=0)
    assert made[checked:] == [(*key, 1024) for key in prompts.keys()] and len(answers(lines)) == 3 * 2


def test_text_that_follows_is_read_beside_dense_attention_however_often_a_run_is_cut_off(model, tmp_path):
    prompts, path = Prompts(Bytes(TEXT, following=64), ("single_key",), (1024,), each=1, texts=3), tmp_path / "r.jsonl"
    whole = [line for line in run(model, path, PIPELINES, prompts, timed=0) if line["kind"] == "after"]
    assert len(whole) == 3 * 3 and all(line["following"] == 64 and line["tokens"] == 1024 for line in whole)
    for line in whole:
        if line["pipeline"] == "dense":
            assert line["kl"] == 0 and line["agreement"] == 1
        else:
            assert line["kl"] > 0 and line["nll"] > 0, "it reads fewer pairs"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:-4]))  # some of the last text's lines are missing
    again = [line for line in run(model, path, PIPELINES, prompts, timed=0) if line["kind"] == "after"]
    figures = lambda lines: [(x["pipeline"], x["seed"], x["nll"], x["kl"], x["agreement"]) for x in lines]  # noqa: E731
    assert figures(again) == figures(whole)
    rows = {row.pipeline: row for row in front(again)}
    for name in PIPELINES:
        mine = [x for x in whole if x["pipeline"] == name]
        theirs = [x for x in whole if x["pipeline"] == "dense"]
        gaps = [a["nll"] - b["nll"] for a, b in zip(mine, theirs, strict=True)]
        assert rows[name].text.value == pytest.approx(sum(gaps) / 3) and rows[name].text.n == 3
        assert rows[name].kl == pytest.approx(sum(x["kl"] for x in mine) / 3)
        assert rows[name].agreement == pytest.approx(sum(x["agreement"] for x in mine) / 3)
    assert rows["dense"].text is None


def test_kept_and_density_are_by_layer(model):
    prompts = Prompts(SOURCE, ("single_key",), (1024,), each=1)
    keep = "token_coverage(tau=0.5, min_tokens=64, sinks=2)"
    lines = run(model, None, {"a schedule": {"1-2": keep, 3: Pipeline.from_spec(BLIND)}}, prompts)
    price = next(line for line in lines if line["kind"] == "price" and not line["dense"])
    assert price["what"] == json.dumps({"1-2": keep, "3": BLIND})
    assert price["kept"]["0"] == price["density"]["0"] == 1 and price["kept"]["3"] == 1 > 0.1 > price["density"]["3"]
    assert all(0 < price["density"][layer] < price["kept"][layer] < 1 for layer in "12")
    row = next(row for row in front(lines) if row.pipeline == "a schedule")
    assert row.kept == pytest.approx(sum(price["kept"].values()) / LAYERS) and row.family == "schedule"


def test_one_that_breaks_is_recorded_and_costs_the_others_nothing(model, tmp_path):
    def breaks(problem):
        if broken:
            raise RuntimeError("out of paper\nand ink")
        return Plan()

    broken, path = True, tmp_path / "records.jsonl"
    prompts, mine = Prompts(SOURCE, ("single_key",), (1024,), each=1), {"breaks": Pipeline([breaks])} | PIPELINES
    lines = run(model, path, mine, prompts)
    rows = {row.pipeline: row for row in front(lines)}
    assert [line["kind"] for line in lines if line.get("pipeline") == "breaks"] == ["failed"], (
        "left out until next time"
    )
    assert rows["breaks"].failed == "RuntimeError: out of paper" and rows["breaks"].right is None
    assert all(rows[name].right and rows[name].speed_up and not rows[name].failed for name in PIPELINES)
    assert (
        "`breaks` broke: RuntimeError: out of paper" in write_page(Records(path).lines, tmp_path / "p.md").read_text()
    )
    broken = False
    row = next(row for row in front(run(model, path, mine, prompts)) if row.pipeline == "breaks")
    assert row.right and row.speed_up and not row.failed, "tried again"


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(name="other"), "out: got records of model 'tiny', and this run has 'other'"),
        (dict(prompts=Prompts(Bytes(TEXT[:-1]), ("single_key",), lengths=(1024,))), "out: got records of text"),
        (dict(pipelines={BLIND: Pipeline.from_spec(NARROW)}), "pipelines: '.*' is '.*' in the records, and here"),
        (dict(pipelines={"dense": Pipeline()}), "pipelines: got the name 'dense', which dense attention has"),
        (dict(pipelines={"x": {9: BLIND}}), "layer 9, but the model has 0 to 3"),
        (dict(timed=-1), "timed: got -1"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_written(model, whole, change, message):
    before = whole.read_bytes()
    with pytest.raises(ValueError, match=message):
        compare(model, **dict(pipelines=PIPELINES, prompts=PROMPTS, records=Records(whole), name="tiny") | change)
    assert whole.read_bytes() == before and model.config._attn_implementation == "sdpa"


def test_a_model_in_training_and_a_file_of_something_else_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="training mode"):
        run(model.train())
    model.eval()
    (tmp_path / "poem").write_text("Shall I compare thee\n")
    with pytest.raises(ValueError, match="line 1 of '.*poem' is no record"):
        Records(tmp_path / "poem")


@pytest.mark.parametrize(
    "wrong,message",
    [
        (dict(tasks=("single",)), "tasks: got 'single'; allowed are 'single_key'"),
        (dict(tasks=()), "tasks: got"),
        (dict(lengths=(1024, 1024)), "lengths: got"),
        (dict(lengths=(100,)), "length=100 bytes is too short"),
        (dict(lengths=(10**9,)), "text has .* bytes, at least"),
        (dict(each=0), "questions: got 0"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Prompts(SOURCE, **dict(tasks=("single_key",)) | wrong)


def lines_of(run, gpu="a GPU", **ms):
    """Return the lines of a run with prices at 1024 bytes; pipelines whose names begin with dense are dense."""
    header = dict(kind="run", run=run, model="m", text="t", gpu=gpu, dtype="float32", versions={"torch": "2"})
    lines = [header | dict(commit=None, clean=None, date="2026-01-01T00:00:00+00:00")]
    for name, one in ms.items():
        spread, dense = dict(p20=one, p50=one, p80=one), name.startswith("dense")
        lines.append(
            dict(
                kind="price", run=run, pipeline=name, what="dense" if dense else f"{name}()", length=1024, dense=dense,
                tokens=1024, attention_ms=spread, first_token_ms=spread, kept={}, density={}, ran_dense={},
            )
        )  # fmt: skip
    return lines


def asked(name, *parts):
    """Return answer records of a pipeline, one for each seed; a part of None means that the seed was not asked."""
    what = name if name == "dense" else f"{name}()"
    return [
        dict(
            kind="answers", run="a", pipeline=name, what=what, length=1024, task="single_key", seed=seed, tokens=1024,
            answers=4, found=round(4 * part), answer="",
        )
        for seed, part in enumerate(parts) if part is not None
    ]  # fmt: skip


def test_a_speed_up_is_over_the_fastest_dense_of_the_same_run():
    slow, fast = lines_of("a", dense=10.0, dense_b=8.0, x=4.0, y=2.0), lines_of("b", dense=100.0, dense_b=200.0, y=50.0)
    alone = lines_of("c", z=1.0)
    rows = {row.pipeline: row for row in front(slow + fast + alone)}
    assert rows["x"].speed_up == 8 / 4 and rows["x"].over == "dense_b"
    assert rows["y"].speed_up == 100 / 50 and rows["y"].over == "dense", "the newest, beside dense of its own run"
    assert rows["z"].speed_up is None and rows["z"].attention_ms.p50 == 1.0
    assert rows["dense"].speed_up == 1.0
    elsewhere = [line | {"length": 2048} for line in lines_of("a", dense=1.0, x=1.0)]
    assert next(row for row in front(slow + elsewhere) if row.length == 1024 and row.pipeline == "x").speed_up == 2


def test_a_difference_is_of_the_prompts_that_both_were_asked():
    lines = lines_of("a", dense=2.0, x=1.0) + asked("dense", 1, 1, 0, None) + asked("x", 1, 0.5, 0, 0)
    dense, row = front(lines)
    assert row.right.value == pytest.approx(1.5 / 4) and row.right.n == 4
    assert row.difference.value == pytest.approx((0 - 0.5 + 0) / 3) and row.difference.n == 3
    assert dense.difference is None and dense.right.value == pytest.approx(2 / 3)
    assert (
        row.dense_part == pytest.approx(row.dense_tasks["single_key"]) == pytest.approx(2 / 3)
        and dense.dense_part is None
    )
    (few,) = (
        x for x in front(lines_of("a", dense=2.0, x=1.0) + asked("dense", 1, 0, 0) + asked("x", 1)) if not x.dense
    )
    assert (few.dense_part, few.dense_tasks, few.difference.value) == (1, {"single_key": 1}, 0), (
        "not the prompts x was not asked"
    )


def test_a_task_that_dense_attention_cannot_do_is_shown_and_does_not_count():
    good = asked("dense", 1, 0.75, 1, 1) + asked("x", 1, 0.5, 0.5, 0.5)
    bad = [line | {"task": "hard"} for line in asked("dense", 0.5, 0.5, 0.5, 0.75) + asked("x", 1, 1, 1, 1)]
    dense, row = front(lines_of("a") + good + bad)
    assert row.uncounted == dense.uncounted == ("hard",)
    assert row.right.value == pytest.approx(2.5 / 4) and row.right.n == 4 and row.difference.n == 4
    assert dense.tasks["hard"].value == pytest.approx(2.25 / 4) and row.tasks["hard"].value == 1
    assert row.difference.value == pytest.approx((0 - 0.25 - 0.5 - 0.5) / 4)
    assert row.certainty == 2 / 2**3, "three prompts differ, all to one side"
    assert that_count(lines_of("a") + good + bad) == lines_of("a") + good
    weak, alone = front(lines_of("a") + bad)
    assert weak.uncounted == alone.uncounted == ("hard",) and alone.right.value == 1, "nothing counts: all are shown"


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.sampled_from([0, 0.25, 0.5, 1])), max_size=8))
def test_the_front_is_what_nothing_beats(points):
    lines = lines_of("a", dense=4.0, **{f"p{i}": ms for i, (ms, _) in enumerate(points)}) + asked("dense", 0.75)
    for i, (_, part) in enumerate(points):
        lines += asked(f"p{i}", part)
    rows = front(lines)
    best = [row for row in rows if row.front]
    assert best and best == [row for row in rows if row in pareto(rows)]
    beats = lambda a, b: (  # noqa: E731
        a.speed_up >= b.speed_up and a.standing.value >= b.standing.value
        and (a.speed_up, a.standing.value) != (b.speed_up, b.standing.value)
    )  # fmt: skip
    for row in rows:
        assert row.front == (not any(beats(other, row) for other in rows))
    across = [(row.speed_up, -row.standing.value) for row in ranked(rows)]
    assert across == sorted(across)


def test_who_was_asked_easier_prompts_is_not_on_the_front_for_it():
    lines = lines_of("a", dense=2.0, x=4.0) + asked("dense", 1, 0, 0) + asked("x", 0.75, None, None)
    rows = {row.pipeline: row for row in front(lines)}
    assert rows["x"].right.value > rows["dense"].right.value and rows["x"].standing.value == -0.25
    assert rows["dense"].front and not rows["x"].front


def test_the_page_says_what_the_records_say(model, whole, tmp_path):
    page = write_page(Records(whole).lines, tmp_path / "new" / "results.md")
    names = sorted(path.name for path in page.parent.iterdir())
    assert names == ["results-1100.png", "results-1K.png", "results.md"], "nothing unfinished is left"
    text, header = page.read_text(), Records(whole).lines[0]
    assert header["run"] in text and header["gpu"] in text and f"torch {torch.__version__}" in text
    assert "## 1K bytes, 1,024 tokens" in text and "![Answers right over speed-up](results-1100.png)" in text
    for row in front(Records(whole).lines):
        cells = next(
            line for line in text.split("\n## ")[1 + (row.length == 1100)].splitlines() if row.pipeline in line
        )
        assert f"{row.attention_ms.p50:,.1f} (" in cells and f"{row.speed_up:.2f}x" in cells, cells
        assert f"{row.density:.3f}" in cells and f"{100 * row.right.value:.1f}%" in cells
    with pytest.raises(ValueError, match="records: got no results"):
        write_page([], tmp_path / "none.md")


def test_a_name_with_a_bar_stays_in_its_cell_and_another_gpu_is_named(tmp_path):
    bar = [
        line | {"pipeline": "a | b"} if line.get("pipeline") == "x" else line for line in lines_of("a", dense=2, x=1)
    ]
    lines = bar + lines_of("b", gpu="another", dense=2.0, y=1.0) + asked("dense", 1) + asked("y", 1)
    rows = [line for line in write_page(lines, tmp_path / "p.md").read_text().splitlines() if line.startswith("|")]
    counts = [line.replace("\\|", "").count("|") for line in rows]
    assert len(set(counts)) == 2 and counts == sorted(counts, reverse=True), "two tables, each of one width"
    assert "| on |" in rows[0] and any("| another |" in line for line in rows)
    assert "- `a | b`: `x()`" in (tmp_path / "p.md").read_text()


def test_the_picture_grows_a_panel_for_those_near_the_best(tmp_path):
    many = {f"p{i}": 5.0 - 0.1 * i for i in range(30)}
    lines = lines_of("a", dense=5.0, **many) + asked("dense", *[1] * 20)
    for i, name in enumerate(many):
        lines += asked(name, *[1] * (20 - i // 10), *[0.75] * (i // 10))
    close = matplotlib.image.imread(draw_front(front(lines), tmp_path / "close.png", title="a title"))
    far = lines + lines_of("a", q=1.0)[1:] + asked("q", *[0] * 20)
    spread = matplotlib.image.imread(draw_front(front(far), tmp_path / "spread.png"))
    assert spread.shape[1] > 1.3 * close.shape[1] and close[..., :3].std() > 0.05
    with pytest.raises(ValueError, match="rows: got none with answers and a speed-up"):
        draw_front(front(lines_of("a", dense=1.0)), tmp_path / "none.png")


def test_records_tell_weights_apart(model):
    other = deepcopy(model)
    assert fingerprint(model) == fingerprint(deepcopy(model).to(torch.bfloat16)), "however they are loaded"
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert fingerprint(other) != fingerprint(model) == fingerprint(deepcopy(model))
    lines = run(model, None, {}, Prompts(SOURCE, ("single_key",), (1024,), each=1), timed=0)
    assert lines[0]["weights"] == fingerprint(model)


def test_records_of_other_weights_are_refused(model, whole):
    other, before = deepcopy(model), whole.read_bytes()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(ValueError, match="out: got records of weights"):
        run(other, whole)
    assert whole.read_bytes() == before


def test_a_marked_pipeline_has_a_ring_and_is_named(tmp_path):
    lines = lines_of("a", dense=4.0, p=1.0, q=2.0)
    for name, right in (("dense", 1), ("p", 1), ("q", 0.5)):
        lines += asked(name, *[right] * 8)
    rows = front(lines)
    plain, other, marked = (
        matplotlib.image.imread(draw_front(rows, tmp_path / f"{i}.png", marked=marks))
        for i, marks in enumerate(({}, {"not there": "of no row"}, {"q": "as published"}))
    )
    assert (plain == other).all()
    assert marked.shape[0] > plain.shape[0], "one more line below"
    dark = lambda picture: (picture[..., :3].max(-1) < 0.3).sum()  # noqa: E731
    assert dark(marked) > dark(plain) + 100, "a ring, a letter and a name"
