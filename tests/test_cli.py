"""The commands as a user runs them: a process, its exit code, its files."""

import json
import subprocess
import sys

import matplotlib.image
import pytest
import torch

from sparsekit import dispatch

SPECS = [
    "token_coverage(tau=0.2, window=16, min_tokens=64) | flex_prefill(block_size=32)"
    " | decompress(fill=sliding_window(16))",
    "streaming(sinks=1, window=1, block_size=1)",
]


def sparsekit(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "sparsekit", *map(str, words)], capture_output=True, text=True, cwd=cwd
    )


def test_the_demo_answers_draws_and_saves(tmp_path):
    ran = sparsekit(
        "demo", "--length", 1024, "--questions", 2, *sum((["--pipeline", s] for s in SPECS), []), "--out", tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "demo.json").read_text())
    dense, stacked, blind = found["rows"]
    assert dense["pipeline"] == "dense" and dense["right"] == 2, "the model itself is right"
    assert dense["speed_up"] == dense["kept"] == dense["density"] == 1.0
    assert 0 < stacked["density"] < stacked["kept"] < 1
    # a query that sees itself alone cannot remember: the demo must say so
    assert blind["right"] == 0 and "2 of 2 answers WRONG" in ran.stdout
    assert all(a["got"] != a["expected"] for a in blind["answers"])
    assert "every answer right" in ran.stdout and "right" in ran.stdout.splitlines()[2]
    picture = matplotlib.image.imread(tmp_path / "plan.png")
    assert picture.shape[0] > 400 and picture.std() > 0.05, "not an empty picture"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "plan.png"], "nothing half-written is left"


def test_the_demo_reads_a_file_of_the_users(tmp_path):
    text = tmp_path / "poem.txt"
    text.write_text("Shall I compare thee to a summer's day?\n" * 60)
    ran = sparsekit("demo", text, "--length", 1024, "--questions", 1, "--pipeline", "dense", "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads((tmp_path / "out" / "demo.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    "words,message",
    [
        (["--length", 1000], "length=1000 bytes is too short"),
        (["--questions", 0], "questions: got 0"),
        (["--pipeline", "flex_prefil"], "flex_prefil"),
        (["--pipeline", "token_coverage(tau=2)"], "tau: got 2"),
        (["--device", "abacus"], "device: got 'abacus'"),
        (["nowhere.txt"], "nowhere.txt' cannot be read"),
        (["--out", "taken"], "taken"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, words, message):
    (tmp_path / "taken").write_text("a file, not a folder")
    ran = sparsekit("demo", *words, cwd=tmp_path)
    assert ran.returncode == 2 and message in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr + ran.stdout


def test_an_unknown_command_and_none_say_what_there_is(tmp_path):
    ran = sparsekit("dmo")
    assert ran.returncode == 2 and "dmo" in ran.stderr
    assert "demo" in sparsekit().stdout + sparsekit().stderr


def test_backends_prints_each_op_and_why_not():
    ran = sparsekit("backends")
    assert ran.returncode == 0, ran.stderr
    for word in (*dispatch.ops(), *dispatch.BACKENDS, "yes", "auto", "attend, block lists"):
        assert word in ran.stdout, word
    if not torch.cuda.is_available():
        assert "flash: it needs a GPU, and the tensors are on cpu" in ran.stdout
