"""Tests of options of commands that load a model: chat, dtype, device map; and of their progress messages."""

import io
import re
import time

import pytest
import torch
from rich.console import Console
from test_cli_errors import EVERY_TOKEN, LINE, command, refused
from tiny_llama import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsekit import Pipeline
from sparsekit.commands import loading, progress
from sparsekit.layers import DENSE, Measured, Schedule

TEMPLATE = (
    "[{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}]{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "plain"
    save_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "talks"
    save_tiny_llama(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text(LINE * 12)  # 480 tokens
    return path


# Chat


@pytest.mark.parametrize("most", [None, 100])
def test_chat_puts_the_text_in_the_models_template(most, talks, text):
    cut = ["--most", most] if most else []
    ran = command("run", talks, "--prompt-file", text, "--pipeline", "dense", "--tokens", 5, "--chat", *cut)
    assert ran.returncode == 0, ran.stderr
    prompt = f"[user: {text.read_text()[:most]}]a:"
    assert f"{len(prompt)} tokens" in ran.stdout, "the template is whole however short the text"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(talks), AutoTokenizer.from_pretrained(talks)
    ids = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, len(prompt) :]
    assert f"dense: {tokenizer.decode(answer, skip_special_tokens=True)!r}" in ran.stdout


@pytest.mark.parametrize("model", ["plain", "embedded"])
def test_chat_is_refused_where_there_is_no_template(model, plain, text):
    where = plain if model == "plain" else model
    said = refused("run", where, "--prompt-file", text, "--pipeline", "dense", "--chat")
    assert f"chat: got {model!r}, whose tokenizer has no chat template" in said and "leave --chat out" in said


# Dtype and device map


@pytest.mark.parametrize("name", loading.DTYPES)
@pytest.mark.parametrize("model", ["plain", "embedded"])
def test_dtype_is_that_of_the_weights(name, model, plain):
    found = loading.load(str(plain) if model == "plain" else model, "cpu", dtype=name).model
    assert {p.dtype for p in found.parameters()} == {getattr(torch, name)}


def test_each_command_takes_a_dtype(plain, text, tmp_path):
    words = plain, "--prompt-file", text, "--dtype", "bfloat16"
    more = {
        "run": [*words, "--pipeline", EVERY_TOKEN, "--tokens", 1],
        "profile": [*words, "--out", tmp_path / "p"],
        "calibrate": [*words, "--pipeline", EVERY_TOKEN, "--out", tmp_path / "c"],
        "eval": [plain, "--dtype", "bfloat16", "--tasks", "copy_span", "--pipelines", "dense", "--questions", 1]
        + ["--texts", 0, "--timed", 0, "--out", tmp_path / "e.jsonl"],
    }
    for name, given in more.items():
        assert command(name, *given).returncode == 0, name
        assert "dtype: got 'bf16'; allowed are 'auto', 'float16'" in refused(name, *given, "--dtype", "bf16")
    assert '"dtype": "bfloat16"' in (tmp_path / "e.jsonl").read_text()


def test_a_device_map_reaches_from_pretrained(plain, text, monkeypatch):
    pytest.importorskip("accelerate", reason="a device map takes accelerate")
    words = "run", plain, "--prompt-file", text, "--pipeline", EVERY_TOKEN, "--tokens", 1, "--device-map"
    given = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: given.append(k) or real(*a, **k))
    ran = command(*words, "cpu")
    assert ran.returncode == 0 and given[0]["device_map"] == "cpu", ran.stderr
    assert "cannot be loaded" in refused(*words, "no such map")
    assert "device-map: got 'auto' and device 'cpu'" in refused(*words, "auto", "--device", "cpu")
    said = refused("run", "embedded", "--prompt-file", text, "--pipeline", "dense", "--device-map", "auto")
    assert "device-map: got 'auto' for the embedded model" in said


# Progress


def lines(stderr):
    return [line for line in stderr.splitlines() if re.fullmatch(r"sparsekit: .+, \d+:\d\d:\d\d so far", line)]


def test_without_a_terminal_a_long_step_is_told_of_and_a_short_one_is_not(monkeypatch, capsys):
    with progress.progress() as on_step:
        on_step(1, 2, "short")
    assert capsys.readouterr().err == "", "it took no ten seconds"
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.progress() as on_step:
        time.sleep(0.1)
        on_step(3, 7, "layer 2")
        time.sleep(0.4)
    said = lines(capsys.readouterr().err)
    assert said[0].startswith("sparsekit: loading, 0:00:0") and said[1].startswith("sparsekit: 3 of 7, layer 2, ")
    assert 2 <= len(said) <= 8, "a line is not said again and again"
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "it ends with the work"


@pytest.mark.parametrize("name", ["run", "profile", "calibrate", "eval", "demo"])
def test_no_command_is_silent_for_long(name, plain, text, tmp_path, monkeypatch):
    assert progress.EVERY <= 20
    monkeypatch.setattr(progress, "EVERY", 1e-4)
    words = plain, "--prompt-file", text
    more = {
        "run": [*words, "--pipeline", EVERY_TOKEN, "--tokens", 1],
        "profile": [*words, "--out", tmp_path],
        "calibrate": [*words, "--pipeline", EVERY_TOKEN, "--out", tmp_path],
        "eval": [plain, "--tasks", "copy_span", "--pipelines", "dense", "--questions", 2, "--texts", 1, "--timed", 1],
        "demo": ["--length", 1024, "--questions", 2, "--pipeline", EVERY_TOKEN, "--out", tmp_path],
    }
    ran = command(name, *more[name])
    assert ran.returncode == 0, ran.stderr
    said = lines(ran.stderr)
    assert any("loading" in line for line in said) and any(" of " in line for line in said), ran.stderr


# Tables in 80 columns


def at_80(stdout):
    """Return the lines of tables, after a check that none is wider than the terminal."""
    shown = [line for line in stdout.splitlines() if any(edge in line for edge in "│┃╷╶")]
    assert shown and max(map(len, shown)) <= 80
    return shown


def test_eval_at_80_columns_has_a_line_for_each_pipeline_and_says_below_what_numbers_mean(plain):
    specs = "token_coverage(tau=0.2, min_tokens=64) | decompress(fill=sliding_window(128))", EVERY_TOKEN
    words = ["eval", plain, "--tasks", "copy_span,needle_single", "--questions", 2, "--texts", 2, "--timed", 1]
    ran = command(*words, "--pipelines", f"{';'.join(specs)};fast", columns=80)
    assert ran.returncode == 0, ran.stderr
    shown = at_80(ran.stdout)
    rows = [line.split("│")[0].strip() for line in shown if "│" in line]
    for name in ("dense", "dense, sparsekit", "(1)", "(2)", "fast", "copy_span", "needle_single"):
        assert name in rows
    assert "pipeline" in rows and not any("_tok" in row for row in rows), "no name is cut"
    assert ran.stdout.splitlines()[-2:] == [f"(1) {specs[0]}", f"(2) {specs[1]}"]


def test_eval_without_times_has_no_column_of_times(plain):
    words = ["eval", plain, "--tasks", "copy_span", "--questions", 1, "--texts", 1, "--timed", 0]
    ran = command(*words, "--pipelines", "fast", columns=80)
    assert ran.returncode == 0 and "ms" not in "".join(at_80(ran.stdout)) and "speed-up" not in ran.stdout.split("[")[0]


def test_the_other_tables_fit_80_columns(plain, text, tmp_path):
    words = plain, "--prompt-file", text
    long = "token_coverage(tau=0.0, min_tokens=64) | decompress(fill=sliding_window(128))"
    for given in (
        ["run", *words, "--pipeline", EVERY_TOKEN, "--tokens", 1],
        ["backends"],
        ["profile", *words, "--out", tmp_path],
        ["calibrate", *words, "--pipeline", long, "--out", tmp_path, "--target", 0.1],
    ):
        ran = command(*given, columns=80)
        assert ran.returncode == 0, ran.stderr
        at_80(ran.stdout)
        if given[0] == "calibrate" and "(1)" in ran.stdout:  # the choice depends on times
            assert f"(1) {Pipeline.from_spec(long).to_spec()}" in ran.stdout.splitlines()


def test_a_schedule_has_a_number_for_a_long_pipeline_and_says_below_which():
    long, short = "token_coverage(tau=0.25, min_tokens=64) | decompress(fill=sliding_window(256))", "flexprefill"
    measured = [
        Measured(layer, spec, ms=1.0, kept=0.5, density=0.3, mass=0.9, error=0.1, chosen=spec != DENSE)
        for layer, name in enumerate((long, short, long))
        for spec in (DENSE, name)
    ]
    schedule = Schedule({layer: name for layer, name in enumerate((long, short, long))}, tuple(measured), target=0.9)
    shown = io.StringIO()
    Console(file=shown, width=80).print(schedule.table())
    rows = [line.split("│")[1:3] for line in at_80(shown.getvalue()) if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["0", "(1)"], ["1", short], ["2", "(1)"]]
    assert schedule.legend() == [f"(1) {long}"]
