"""What the front's processes write: every figure is of the run that measured it. What claims rest on."""

import time

from bench.front.report import CONFIRMATION, LEFT_OUT, RECORDS, answers, claimed, read_lines
from bench.front.run import ask
from sparsekit import recipes
from sparsekit.testbed import CLAIMED, TASKS, read_text
from sparsekit.testbed.front import front
from sparsekit.testbed.records import Records

LOSSES = "loss", "after"


def test_what_is_added_to_old_records_is_of_its_own_run(tmp_path):
    how = dict(words=["smooth .4 by 63"], tasks=["single_key"], sizes=[1024], text=read_text(None), device="cpu")
    records = Records(tmp_path / "first.jsonl")
    ask([0], records.path, **how, deadline=time.time() + 600, commit="a" * 40)
    old = Records(records.path).lines
    assert {line["pipeline"] for line in old if line["kind"] == "after"} == {"dense", "smooth .4 by 63, 512 vote"}

    later = Records(tmp_path / "later.jsonl")  # answered on another day, read today
    later.append(*[line for line in old if line["kind"] not in LOSSES])
    ask([0], later.path, **how, deadline=time.time() + 600, commit="b" * 40)
    lines = Records(later.path).lines
    commits = {line["run"]: line["commit"] for line in lines if line["kind"] == "run"}
    assert {commits[line["run"]] for line in lines if line["kind"] in LOSSES} == {"b" * 40}
    assert {commits[line["run"]] for line in lines if line["kind"] == "answers"} == {"a" * 40}


def test_claims_rest_on_tasks_that_dense_attention_does():
    for path in (RECORDS, CONFIRMATION):
        dense = [row for row in front(claimed(read_lines(path))) if row.dense]
        assert {row.length for row in dense} >= {32768, 131072}
        for row in dense:
            assert row.tasks.keys() == set(CLAIMED) and all(part.value >= 0.95 for part in row.tasks.values())


def test_every_point_has_400_answers_and_every_recipe_is_confirmed():
    assert min(answers(claimed(read_lines(RECORDS))).values()) >= 400
    lines = claimed(read_lines(CONFIRMATION))
    asked = answers(lines)
    enough = {(row.what, row.length) for row in front(lines) if asked[row.pipeline, row.length] >= 400}
    specs = [recipe().to_spec() for recipe in recipes.PIPELINES.values()]
    assert enough >= {(spec, length) for spec in specs for length in (32768, 131072)}


def test_every_task_that_no_claim_rests_on_was_asked_and_is_not_found():
    rows = [row for row in front(read_lines(LEFT_OUT)) if row.dense]
    for task in TASKS.keys() - set(CLAIMED):
        assert any(row.tasks[task].value < 0.95 for row in rows)
