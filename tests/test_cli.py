"""Tests of the commands as a user runs them: the process, its exit code, its files."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import matplotlib.image
import pytest
import torch
from tiny_llama import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsekit as sk
from sparsekit import dispatch
from sparsekit.cli import main
from sparsekit.commands.evaluate import _apart
from sparsekit.demo import BESIDE
from sparsekit.layers import Schedule

SPECS = [
    "token_coverage(tau=0.2, voters=16, min_tokens=64, sinks=2) | flex_prefill(block_size=32)"
    " | decompress(fill=sliding_window(16, sinks=2))",
    "streaming(sinks=1, window=1, block_size=1)",
]


def sparsekit(*words, cwd=None):
    wide = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "sparsekit", *map(str, words)], capture_output=True, text=True, cwd=cwd, env=wide
    )


@pytest.fixture
def here(monkeypatch, capfd):
    """Run a command in this process, because a new one takes seconds; return its exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["sparsekit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


def test_the_demo_answers_draws_and_saves(tmp_path, here):
    ran = here(
        "demo", "--length", 1024, "--questions", 2, *sum((["--pipeline", s] for s in SPECS), []), "--out", tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "demo.json").read_text())
    dense, stacked, blind = found["rows"]
    assert dense["pipeline"] == "dense" and dense["right"] == 2, "the model itself is right"
    assert dense["speed_up"] == dense["kept"] == dense["density"] == 1.0
    assert 0 < stacked["density"] < stacked["kept"] < 1
    # a query that sees only itself cannot retrieve: the demo must report wrong answers
    assert blind["right"] == 0 and "2 of 2 answers WRONG" in ran.stdout
    assert all(a["got"] != a["expected"] for a in blind["answers"])
    assert "every answer right" in ran.stdout and "right" in ran.stdout.splitlines()[2]
    picture = matplotlib.image.imread(tmp_path / "plan.png")
    assert picture.shape[0] > 400 and picture.std() > 0.05, "not an empty picture"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "plan.png"], "nothing half-written is left"


def test_the_demo_explains_zeros_windows_and_sinks_in_one_picture(tmp_path, here):
    ran = here("demo", "--length", 1536, "--questions", 1, "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "demo.json").read_text())["rows"]}
    assert list(rows)[:4] == ["dense", *BESIDE]
    assert len({rows[name]["pipeline"].split(" | ")[0] for name in BESIDE}) == 1, "the same choice of tokens"
    densities = [rows[name]["density"] for name in BESIDE]
    assert densities == sorted(densities) and densities[0] < densities[1] < densities[2]
    high, wide = matplotlib.image.imread(tmp_path / "plan.png").shape[:2]
    assert wide > 1.8 * high, "three panels beside each other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "plan.png"]


def test_the_demo_reads_a_file_of_the_users(tmp_path, here):
    text = tmp_path / "poem.txt"
    text.write_text("Shall I compare thee to a summer's day?\n" * 60)
    ran = here("demo", text, "--length", 1024, "--questions", 1, "--pipeline", "dense", "--out", tmp_path / "out")
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
def test_bad_input_is_one_line_and_exit_2(tmp_path, words, message, here, monkeypatch):
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.chdir(tmp_path)
    ran = here("demo", *words)
    assert ran.returncode == 2 and message in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr + ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a transformers model with a tokenizer, like a user's folder."""
    path = tmp_path_factory.mktemp("model")
    save_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text("Shall I compare thee to a summer's day?\n" * 12)
    return path


def test_run_prints_both_continuations(folder, text, here):
    same = here("run", folder, "--prompt-file", text, "--pipeline", "token_coverage(tau=0.0)", "--tokens", 8)
    assert same.returncode == 0, same.stderr
    assert "the continuations are the same" in same.stdout and "480 tokens" in same.stdout
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text.read_text(), return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, 480:]
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    assert f"dense: {expected!r}" in same.stdout and f"sparse: {expected!r}" in same.stdout
    blind = here("run", folder, "--prompt-file", text, "--pipeline", SPECS[1], "--tokens", 8, "--most", 300)
    assert "the continuations DIFFER" in blind.stdout and "300 tokens" in blind.stdout, blind.stderr
    dense, sparse = (line.split("│")[2:-1] for line in blind.stdout.splitlines() if line[:4] in ("│ de", "│ sp"))
    assert float(dense[-1]) == 1.0 and float(sparse[-1]) == pytest.approx(4 / 301, abs=1e-3), "itself and the first"
    assert all(0 < float(row[0].replace(",", "")) <= float(row[3].replace(",", "")) for row in (dense, sparse))


def test_profile_writes_a_schedule_that_run_takes(folder, text, tmp_path, here):
    ran = here("profile", folder, "--prompt-file", text, "--pipeline", SPECS[1], "--quantile", 0.25, "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drift.png", "sparsekit.json"]
    found = Schedule.load(tmp_path)
    assert sorted(set(found.pipeline.values())) == ["dense", SPECS[1]]
    assert ran.stdout.count("yes") == 1, "one layer of four"
    ran = here("run", folder, "--prompt-file", text, "--pipeline", tmp_path, "--tokens", 1)
    assert ran.returncode == 0, ran.stderr
    density = float(next(line for line in ran.stdout.splitlines() if line.startswith("│ sparse")).split("│")[-2])
    assert density == pytest.approx((3 + 4 / 481) / 4, abs=1e-3)


def test_profile_and_run_say_where_a_pipeline_leaves_out_the_sinks(folder, text, tmp_path, here):
    """The model's attention is uniform, so a query among 100 tokens puts a third of it on the first 16."""
    words = [folder, "--prompt-file", text, "--most", 100]
    seeing = "streaming(sinks=16, window=16, block_size=16) | attend(break_even=0)"
    for spec, blind in ((f"{SPECS[1]} | attend(break_even=0)", True), (seeing, False)):
        profiled = here("profile", *words, "--pipeline", spec, "--quantile", 1, "--out", tmp_path)
        ran = here("run", *words, "--pipeline", spec, "--tokens", 1)
        for done in (profiled, ran):
            assert done.returncode == 0, done.stderr
            warned = [line for line in done.stdout.splitlines() if line.startswith("WARNING: ")]
            assert len(warned) == blind
            for line in warned:
                assert "of its mass on the first 16 tokens (head " in line and "; likewise layers " in line
                assert line.split("of the queries: ")[1].startswith("let the block stage keep the first block")
        rows = [line.split("│")[1:-1] for line in profiled.stdout.splitlines() if line.startswith("│")]
        saved = json.loads((tmp_path / "sparsekit.json").read_text())["measured"]["sinks"]
        assert [row[0].strip() for row in rows] == list(saved) == ["0", "1", "2", "3"]
        for row, one in zip(rows, saved.values(), strict=True):
            assert row[4].strip() == f"{one['mean']:.3f}" and row[5].strip() == f"{one['largest']:.3f} ({one['head']})"
            assert one["keys"] == 16 and 0.2 < one["mean"] <= one["largest"] < 0.6
        assert Schedule.load(tmp_path).sinks == {int(layer): one for layer, one in saved.items()}
    without = here("profile", *words, "--out", tmp_path)
    assert without.returncode == 0 and "WARNING" not in without.stdout, "no pipeline, no plan"


def test_calibrate_measures_each_candidate_in_each_layer(folder, text, tmp_path, here):
    specs = ["token_coverage(tau=0.0)", SPECS[1]]
    words = sum((["--pipeline", spec] for spec in specs), [])
    ran = here("calibrate", folder, "--prompt-file", text, *words, "--target", 0.9, "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["schedule.png", "sparsekit.json"]
    found = Schedule.load(tmp_path)
    assert found.target == 0.9 and len(found.measured) == 3 * 4
    assert SPECS[1] not in {one.pipeline for one in found.chosen.values()}, "it forgets"
    assert "schedule: attention" in ran.stdout and "target" not in ran.stderr


def tables_of(text):
    """Return the cells of the tables that a command printed, by the names of row and column."""
    found, head = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if cells[0] in ("pipeline", "task"):
            head = cells
        elif len(cells) == len(head) and cells[0]:
            found[cells[0]] = found.get(cells[0], {}) | dict(zip(head[1:], cells[1:], strict=True))
    return found


def test_eval_asks_the_embedded_model_and_writes_records_and_a_page(tmp_path, here):
    out, page = tmp_path / "results.jsonl", tmp_path / "results.md"
    words = ["eval", "embedded", "--tasks", "single_key,multi_key", "--lengths", "1K", "--questions", 1, "--timed", 1]
    words += ["--pipelines", f"dense; {SPECS[1]}", "--texts", 1, "--out", out, "--page", page]
    ran = here(*words)
    assert ran.returncode == 0, ran.stderr
    found = tables_of(ran.stdout)
    dense, blind = found["dense"], found[SPECS[1]]
    assert dense["right"].startswith("100.0% [34.2, 100.0]"), "the model itself is right"
    assert blind["right"].startswith("0.0%"), "seeing itself alone it cannot remember"
    assert blind["difference"].startswith("-100.0") and blind["p"] == "0.500", "of two prompts"
    assert found["single_key"] == found["multi_key"] and found["single_key"]["counts"] == "yes"
    assert float(blind["density"]) < 0.01 and dense["density"] == "1.000" and float(blind["KL"]) > 0.1
    assert "1K bytes: answers" in ran.stdout and "dense, sparsekit" in found
    assert f"| `{SPECS[1]}` | 0.0%" in page.read_text() and (tmp_path / "results-1K.png").is_file()

    before, wrote = out.read_bytes(), page.read_bytes()
    out.write_bytes(before[:-9])
    ran = here(*words)
    assert ran.returncode == 0 and "its last line was cut off; that result is measured again" in ran.stdout, ran.stderr
    assert tables_of(ran.stdout) == found, "the same answers, and the price is not taken again"
    assert out.read_bytes().startswith(before[: before[:-9].rfind(b"\n") + 1])
    assert here("page", out, page).returncode == 0 and page.read_bytes() != wrote, "there are two runs now"
    out.write_bytes(before)
    assert here("page", out, page).returncode == 0 and page.read_bytes() == wrote


def test_eval_asks_any_other_model_in_words(folder, tmp_path, here):
    out, page = tmp_path / "words.jsonl", tmp_path / "words.md"
    words = ["eval", folder, "--pipelines", f"{SPECS[1]},fast", "--questions", 1, "--texts", 2, "--timed", 0]
    words += ["--tasks", "needle_questions,copy_span", "--out", out, "--page", page]
    ran = here(*words)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["length"] for line in lines[1:]} == {2048}, "by default 2K and what the model has positions for"
    assert lines[0]["unit"] == "tokens" and lines[0]["rope"]["rope_type"] == "default"
    asked = [line for line in lines if line["kind"] == "answers"]
    assert {(x["pipeline"], x["task"]) for x in asked} == {
        (name, task) for name in ("dense", SPECS[1], "fast") for task in ("needle_questions", "copy_span")
    }
    assert all(x["answers"] == len(x["values"]) == 4 and x["found"] == sum(x["values"]) for x in asked)
    assert [x["seed"] for x in lines if x["kind"] == "after"] == [0, 0, 0, 1, 1, 1]
    assert "2K tokens: right by task" in ran.stdout and "## 2K tokens\n" in page.read_text()
    before = out.read_bytes()
    assert here(*words).returncode == 0 and out.read_bytes() == before, "nothing was left to do"


def test_eval_goes_beyond_a_models_positions_only_with_rope_scaling(folder, tmp_path, here):
    words = [
        "eval",
        folder,
        "--pipelines",
        "dense",
        "--questions",
        1,
        "--texts",
        0,
        "--timed",
        0,
        "--tasks",
        "copy_span",
    ]
    ran = here(*words, "--lengths", "3K")
    assert ran.returncode == 2 and "lengths: got 3,072 tokens, and the model was made for 2,048 positions" in ran.stderr
    assert '--rope-scaling "yarn:4"' in ran.stderr and ran.stderr.count("\n") == 1
    out = tmp_path / "beyond.jsonl"
    for scaling in ("yarn:1.5", '{"rope_type": "linear", "factor": 1.5}'):
        out.unlink(missing_ok=True)
        ran = here(*words, "--lengths", "3K", "--rope-scaling", scaling, "--out", out)
        assert ran.returncode == 0, ran.stderr
        rope = json.loads(out.read_text().splitlines()[0])["rope"]
        assert rope["factor"] == 1.5 and rope["rope_type"] in scaling
    ran = here(*words, "--out", out)
    assert ran.returncode == 2 and "out: got records of rope" in ran.stderr, "another model"
    ran = here(*words, "--lengths", "4K", "--rope-scaling", "yarn:1.5")
    assert "made for 3,072 positions, stretched by yarn:1.5" in ran.stderr
    for wrong in ("yarn", "yarn:1", "dynamic:2", "{", '{"rope_type": "dynamic", "factor": 2}', "[]"):
        ran = here(*words, "--rope-scaling", wrong)
        assert ran.returncode == 2 and f"rope-scaling: got {wrong!r}; allowed are" in ran.stderr


def test_a_gguf_file_is_refused_by_what_lacks(tmp_path, here, monkeypatch):
    ran = here("eval", tmp_path / "gone.gguf")
    assert ran.returncode == 2 and "gone.gguf', which is no file; allowed is a .gguf file" in ran.stderr
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = here("eval", tmp_path / "model.gguf")
    assert ran.returncode == 2 and 'this needs gguf: pip install "sparsekit[gguf]"' in ran.stderr


@pytest.mark.parametrize(
    "given, apart",
    [
        (["lossless,balanced,fast"], ["lossless", "balanced", "fast"]),
        (["a(x=1, y=2) | b(c(1,2), 3) , fast; d"], ["a(x=1, y=2) | b(c(1,2), 3)", "fast", "d"]),
        (["union([a(1,2), b]),fast", "fast"], ["union([a(1,2), b])", "fast"]),
        (["a(mode='x,y;z'),b", " ;, "], ["a(mode='x,y;z')", "b"]),
    ],
)
def test_pipelines_are_apart_at_commas_outside_brackets_and_quotes(given, apart):
    assert list(_apart(given)) == apart


@pytest.mark.parametrize(
    "words,message",
    [
        (["run", "nowhere", "--prompt-file", "text", "--pipeline", "dense"], "MODEL: 'nowhere' cannot be loaded"),
        (
            ["run", "./no/where/at/all", "--prompt-file", "text", "--pipeline", "dense"],
            "no folder, no .gguf file and no hub id",
        ),
        (
            ["run", "empty", "--prompt-file", "text", "--pipeline", "dense"],
            "cannot be loaded (ValueError: Unrecognized model in empty",
        ),
        (["run", "broken", "--prompt-file", "text", "--pipeline", "dense"], "MODEL: 'broken' cannot be loaded"),
        (["run", "embedded", "--prompt-file", "gone", "--pipeline", "dense"], "prompt-file: 'gone' cannot be read"),
        (["run", "embedded", "--prompt-file", "empty", "--pipeline", "dense"], "prompt-file: 'empty' cannot be read"),
        (["run", "embedded", "--prompt-file", "blank", "--pipeline", "dense"], "prompt-file: 'blank' is empty"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "flex_prefil"], "there is no 'flex_prefil'"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "gone.json"], "path: 'gone.json' cannot be read"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "other.json"], "layer 8, but the model has 0 to 7"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "dense", "--tokens", 0], "tokens: got 0"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "dense", "--most", 0], "most: got 0"),
        (["run", "embedded", "--prompt-file", "text", "--pipeline", "dense", "--device", "abacus"], "got 'abacus'"),
        (["profile", "nowhere", "--prompt-file", "text"], "MODEL: 'nowhere'"),
        (["profile", "embedded", "--prompt-file", "gone"], "prompt-file: 'gone'"),
        (["profile", "embedded", "--prompt-file", "text", "--quantile", 2], "quantile: got 2"),
        (["profile", "embedded", "--prompt-file", "text", "--pipeline", "flex_prefil"], "there is no 'flex_prefil'"),
        (["profile", "embedded", "--prompt-file", "text", "--out", "text"], "File exists: 'text'"),
        (["calibrate", "nowhere", "--prompt-file", "text", "--pipeline", "streaming"], "MODEL: 'nowhere'"),
        (["calibrate", "embedded", "--prompt-file", "gone", "--pipeline", "streaming"], "prompt-file: 'gone'"),
        (["calibrate", "embedded", "--prompt-file", "text", "--pipeline", "flex_prefil"], "there is no 'flex_prefil'"),
        (["calibrate", "embedded", "--prompt-file", "text", "--pipeline", "streaming", "--target", 0], "target: got 0"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--tasks", "x"], "tasks: got 'x'; allowed"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", "4Q"], "lengths: got '4Q'; allowed are numbers"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", "1K,1K"], "lengths: got [1024, 1024]"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--timed=-1"], "timed: got -1"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--out", "text"], "line 1 of 'text' is no"),
        (["eval", "embedded", "--pipeline", "other.json", "--length", 1024], "layer 8, but the model has 0 to 7"),
        (["eval", "embedded", "--length", "256K"], "lengths: got 262,144 bytes, and the model was made for 131,072"),
        (["eval", "embedded", "--rope-scaling", "yarn:4"], "rope-scaling: got 'yarn:4' for the embedded model"),
        (["eval", "embedded", "--texts=-1", "--length", "1K"], "texts: got -1"),
        (["page", "gone", "page.md"], "records: got 'gone', which is no file"),
        (["page", "text", "page.md"], "line 1 of 'text' is no record"),
        (["page", "blank", "page.md"], "records: got no results"),
        (["eval", "nowhere", "--pipeline", "streaming", "--length", 1024], "MODEL: 'nowhere'"),
        (["eval", "embedded", "--pipeline", "flex_prefil", "--length", 1024], "there is no 'flex_prefil'"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1000], "length=1000 bytes is too short"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--questions", 0], "questions: got 0"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--file", "gone"], "'gone' cannot be read"),
        (["eval", "embedded", "--pipeline", "streaming", "--length", 1024, "--device", "abacus"], "got 'abacus'"),
    ],
)
def test_bad_input_to_any_command_is_one_line_and_exit_2(tmp_path, words, message, here, monkeypatch):
    (tmp_path / "text").write_text("some text\n")
    (tmp_path / "blank").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "other.json").write_text('{"pipeline": {"8": "streaming"}}')
    monkeypatch.chdir(tmp_path)
    ran = here(*words)
    assert ran.returncode == 2 and message in ran.stderr
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr + ran.stdout


def test_bad_input_to_a_process_of_its_own(tmp_path):
    ran = sparsekit("run", "no where", "--prompt-file", "gone", "--pipeline", "dense", cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr.startswith("sparsekit: MODEL: got 'no where', which is no folder")
    assert ran.stderr.count("\n") == 1 and ran.stdout == ""


def test_an_unknown_command_and_none_say_what_there_is(here):
    ran = here("dmo")
    assert ran.returncode == 2 and "dmo" in ran.stderr
    none = here()
    assert "demo" in none.stdout + none.stderr


def test_the_version_is_printed(here):
    ran = here("--version")
    assert ran.returncode == 0, ran.stderr
    assert f"sparsekit {version('sparsekit')}" in ran.stdout and f"torch {torch.__version__}" in ran.stdout
    assert sk.__version__ == version("sparsekit")
    assert here().returncode == 2 and "--version" in here().stdout + here().stderr


def test_backends_prints_each_op_and_why_not(here, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ran = here("backends")
    assert ran.returncode == 0, ran.stderr
    for word in (*dispatch.ops(), *dispatch.BACKENDS, "yes", "auto", "window_scores, window, padding"):
        assert word in ran.stdout, word
    if not torch.cuda.is_available():
        reasons = [line for line in ran.stdout.splitlines() if line.startswith("(")]
        assert [line[4:] for line in reasons if not line[4:].startswith("cpu: ")] == [
            "hopper: it needs a Hopper GPU, and there is none here",
            "flash: it needs an NVIDIA GPU, and there is none here",
            "triton: it needs a GPU, and there is none here",
        ]
