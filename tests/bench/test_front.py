"""Tests of the accuracy report: its records, its pages for more recipes, tasks and models, and the claims."""

import json
import time

import pytest

from bench.accuracy import claims, report
from bench.accuracy.claims import CLAIMS, Claim, broken
from bench.accuracy.measured import Measured, read_all
from bench.accuracy.run import ask, asked_of, cases
from bench.records import FOLDER
from sparsekit import Pipeline, recipes
from sparsekit.commands.loading import load
from sparsekit.evaluation.page import write_page
from sparsekit.evaluation.records import Records
from sparsekit.testbed import TASKS, read_text

RECORDS = FOLDER / "front"


def test_the_pages_agree_with_the_committed_records():
    report.main(check=True)


@pytest.fixture(scope="module")
def short():
    """Return the embedded model's records at one length, with today's recipes in place of three old pipelines."""
    stand_in = {"fast": "128 vote, window 128", "balanced": "512 vote, window 512", "lossless": "512 vote, window 8192"}
    names = {f"smooth .2, {old}, no sinks": recipes.PIPELINES[name]().to_spec() for name, old in stand_in.items()}
    lines = Records(RECORDS / "embedded.jsonl").lines
    chosen = [x for x in lines if x["kind"] == "run" or (x["length"] == 32768 and x["what"] == "dense")]
    return chosen + [
        x | {"what": names[x["pipeline"]]} for x in lines if x.get("pipeline") in names and x["length"] == 32768
    ]


@pytest.fixture
def written(short, tmp_path):
    """Return a function that writes README and docs/front.md from `short` and other records, and returns both."""
    (tmp_path / "README.md").write_text("before\n<!-- recipes -->\nold\n<!-- /recipes -->\nafter\n")

    def write(**others):
        folder = tmp_path / "records"
        folder.mkdir(exist_ok=True)
        for name, lines in ({"embedded": short} | others).items():
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        report.main(check=False, records=folder, readme=tmp_path / "README.md", docs=tmp_path)
        report.main(check=True, records=folder, readme=tmp_path / "README.md", docs=tmp_path)
        return (tmp_path / "README.md").read_text(), (tmp_path / "front.md").read_text()

    return write


def renamed(lines, model):
    return [line | ({"model": model, "unit": "tokens"} if line["kind"] == "run" else {}) for line in lines]


def test_what_is_added_to_old_records_is_of_its_own_run(tmp_path):
    how = dict(
        model="embedded", words=["smooth .1, 512"], low=[], half="", tasks=["single_key"], sizes=[1024], device="cpu"
    )
    how["text"] = read_text(None)
    records = Records(tmp_path / "first.jsonl")
    ask([0], records.path, **how, deadline=time.time() + 600, commit="a" * 40)
    old = Records(records.path).lines
    assert {line["pipeline"] for line in old if line["kind"] == "after"} == {
        "dense",
        "smooth .1, 512 vote, window 512, no sinks",
    }

    later = Records(tmp_path / "later.jsonl")  # answered on another day, read today
    later.append(*[line for line in old if line["kind"] != "after"])
    ask([0], later.path, **how, deadline=time.time() + 600, commit="b" * 40)
    lines = Records(later.path).lines
    commits = {line["run"]: line["commit"] for line in lines if line["kind"] == "run"}
    assert {commits[line["run"]] for line in lines if line["kind"] == "after"} == {"b" * 40}
    assert {commits[line["run"]] for line in lines if line["kind"] == "answers"} == {"a" * 40}


def test_without_names_the_tasks_are_those_that_claims_rest_on():
    source = cases(load("embedded", "cpu"), read_text(None))
    assert asked_of(source, []) == source.groups["claimed"] and asked_of(source, ["copy_span"]) == ("copy_span",)


def test_the_records_bear_out_what_is_claimed():
    assert not broken(read_all(RECORDS))
    assert not broken(read_all(RECORDS / "confirmation"), enough=1), "other seeds are fewer, and must not contradict it"


def test_a_recipe_and_a_task_of_ones_own_are_listed_as_not_measured(written, short, monkeypatch):
    monkeypatch.setitem(recipes.PIPELINES, "mine", lambda: Pipeline.from_spec("streaming(sinks=7)"))
    monkeypatch.setitem(TASKS, "riddle", TASKS["single_key"])
    readme, page = written()
    for text in (readme, page):
        row = next(line for line in text.splitlines() if "| `mine` |" in line)
        assert "not measured" in row and text.count("not measured") >= 1
    assert "`riddle`" in page.split("Tasks that were not measured: ")[1].splitlines()[0]
    models = [Measured(tuple(short))]
    assert not broken(models), "nobody claimed anything of it"
    assert any("mine on embedded at 32K bytes: claimed" in x for x in broken(models, {"mine": Claim()}))


def test_real_models_come_first_each_with_its_file_and_pictures(written, short, tmp_path):
    readme, page = written(zebra=renamed(short, "Zebra-1B"), ape=renamed(short, "Ape-2B"))
    rows = [line.split(" | ")[0].strip("| ") for line in readme.splitlines() if "` |" in line]
    assert list(dict.fromkeys(rows)) == ["Ape-2B", "Zebra-1B", "embedded"]
    assert "| Ape-2B | 32K tokens | `fast` |" in readme and "| embedded | 32K bytes | `fast` |" in readme
    assert readme.startswith("before\n<!-- recipes -->\n") and readme.endswith("<!-- /recipes -->\nafter\n")
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["front-ape-2b-32K.png", "front-embedded-32K.png", "front-zebra-1b-32K.png"]
    assert all(f"]({name})" in page for name in pictures)
    with pytest.raises(report.typer.Exit):
        (tmp_path / "front.md").write_text(page + "by hand\n")
        report.main(check=True, records=tmp_path / "records", readme=tmp_path / "README.md", docs=tmp_path)


def test_a_table_says_what_the_records_say(short):
    measured = Measured(tuple(short))
    row = measured.recipe("fast", 32768)
    line = report.line(measured, 32768, "`fast`", row)
    assert (
        f"| {row.right.value:.1%} / {row.dense_part:.1%} of {measured.answers(row)} | " in line
        and f"| {row.speed_up:.2f}x | " in line
    )
    assert "conversation" in line, "which loses most"
    of = lambda name: {  # noqa: E731
        (x["seed"], x["following"]): x["nll"] for x in short if x["kind"] == "after" and x["pipeline"] == name
    }
    after, plain = of(row.pipeline), of("dense")
    gap = sum(after[key] - plain[key] for key in after) / len(after)
    assert f"| {gap:+.4f} [" in line


def test_a_task_that_dense_attention_fails_counts_for_nothing(short):
    failed = lambda x: x["kind"] == "answers" and x["task"] == "copy_span" and x["pipeline"] == "dense"  # noqa: E731
    measured = Measured(tuple(x | {"found": 0} if failed(x) else x for x in short))
    assert measured.uncounted[32768].keys() == {"copy_span"}
    assert all("copy_span" not in row.tasks for row in measured.rows)
    left_out = "Left out at 32K bytes, because dense attention has too few right: `copy_span` 0.0%."
    assert left_out in report.tasks(measured)[0]


def damaged(lines, recipe, **change):
    """Return the records with `new` fields in a recipe's lines for which `where` is true."""
    what = recipes.PIPELINES[recipe]().to_spec()
    found = []
    for line in lines:
        hit = line.get("what") == what and line["kind"] == change["kind"] and change["where"](line)
        found.append(line | change["new"](line) if hit else line)
    return [Measured(tuple(found))]


@pytest.mark.parametrize(
    "recipe,change,sentence",
    [
        (
            "lossless",
            dict(kind="answers", where=lambda x: x["task"] == "multi_query", new=lambda x: {"found": 0}),
            "a sure loss, multi_query",
        ),
        (
            "lossless",
            dict(kind="after", where=lambda x: True, new=lambda x: {"nll": x["nll"] + 0.01}),
            "text that follows loses up to",
        ),
        (
            "balanced",
            dict(kind="answers", where=lambda x: x["seed"] % 4 == 0, new=lambda x: {"found": 0}),
            "of dense attention's answers",
        ),
    ],
)
def test_a_claim_that_the_records_do_not_bear_out_is_named(short, recipe, change, sentence):
    assert not broken([Measured(tuple(short))], CLAIMS)
    found = broken(damaged(short, recipe, **change), CLAIMS)
    assert any(fault.startswith(recipe) and sentence in fault for fault in found) and all(recipe in x for x in found)


def test_a_claim_needs_answers_and_a_mean(short, monkeypatch):
    models = [Measured(tuple(short))]
    assert broken(models, {"fast": Claim(average=0.99)}) == ["fast: 98.4% of dense attention's answers on average"]
    few = [x for x in short if x["kind"] != "answers" or x["pipeline"] == "dense" or x["seed"] < 2]
    assert any("fast" in fault and "fewer than 200" in fault for fault in broken([Measured(tuple(few))], CLAIMS))
    monkeypatch.setattr(claims, "ENOUGH", 10**6)
    assert any("fewer than 1000000" in fault for fault in broken(models, CLAIMS))
    assert all(str(claim) for claim in CLAIMS.values())


def test_the_full_page_is_written_from_a_file_of_records(short, tmp_path):
    text = write_page(short, tmp_path / "page.md").read_text()
    assert all(row.pipeline in text for row in Measured(tuple(short)).rows)
