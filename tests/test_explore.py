"""Tests of the page of explore: its numbers equal those of explain and of the plans, and its text is escaped."""

import base64
import json
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import byte_tokenizer, save_tiny_llama

from sparsekit import Pipeline
from sparsekit.cli import main
from sparsekit.explore import explore, pieces, write_page
from sparsekit.explore.pictures import UNSEEN, WHOLE, Grid, levels, mass_levels
from sparsekit.explore.pieces import LOST
from sparsekit.integrations.transformers import sparsify
from sparsekit.layers import Schedule
from sparsekit.problem import Problem
from sparsekit.report import sampled_rows
from sparsekit.sinks import measure
from sparsekit.testbed import ByteTokenizer, TextTokenizer, load_model, read_text

SPECS = [
    "token_coverage(tau=0.2, voters=16, min_tokens=64, sinks=2) | flex_prefill(block_size=32)"
    " | decompress(fill=sliding_window(16, sinks=2))",
    "streaming(sinks=1, window=16, block_size=16)",
]
HOSTILE = '</script><script>alert("é 😀")</script> & <!-- __DATA__ __TITLE__ \u2028'


def embedded(path):
    """Return the JSON in a page, as a browser would find it."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def prompt():
    text = HOSTILE.encode() + read_text()[:320]
    return list(text[:320])


@pytest.fixture(scope="module")
def page(model, prompt, tmp_path_factory):
    """Return the data in the page of the embedded model and two pipelines."""
    found = explore(model, prompt, dict(zip("ab", SPECS, strict=True)))
    path = tmp_path_factory.mktemp("page") / "explore.html"
    assert write_page(found, path, pieces(ByteTokenizer(), prompt), model=HOSTILE, made={"command": HOSTILE}) == path
    assert [file.name for file in path.parent.iterdir()] == ["explore.html"], "nothing half-written is left"
    return path


@pytest.fixture(scope="module")
def problems(model, prompt):
    """Return by layer the problem of dense attention over the prompt."""
    found: dict[int, Problem] = {}
    with torch.no_grad(), sparsify(model, "dense", watch=lambda call: found.update({call.layer: call.problem})):
        model.base_model(torch.tensor([prompt]), use_cache=False)
    return found


def pictures(layer, cells, pipelines):
    """Return a layer's pictures: attention [H, n, n], and [H, 2, n, n] of each pipeline."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(layer["pictures"])), np.uint8)
    H, size = layer["heads"], cells * cells
    assert len(raw) == H * size * (1 + 2 * pipelines)
    attention, *runs = np.split(raw, [H * size * (1 + 2 * i) for i in range(pipelines)])
    return attention.reshape(H, cells, cells), [run.reshape(H, 2, cells, cells) for run in runs]


def test_the_numbers_are_those_of_explain_and_of_the_plans(page, problems):
    found = embedded(page)
    assert [one["number"] for one in found["layers"]] == list(range(8)) and found["unseen"] == []
    assert found["tokens"] == 320 and found["heads"] == 64
    for layer in found["layers"]:
        problem = problems[layer["number"]]
        assert layer["sinks"] == list(measure(problem, sampled_rows(problem)).heads)
        for spec, run in zip(SPECS, layer["runs"], strict=True):
            pipeline = Pipeline([Pipeline.from_spec(spec)], break_even=0)
            assert run["spec"] == pipeline.to_spec() and run["ms"] > 0
            step = pipeline.explain(problem.q, problem.k, problem.v, scale=problem.scale).steps[-1]
            for name in ("kept", "density", "mass", "error"):
                # a mean over heads; explain sums over all heads at once
                assert run["whole"][name] == pytest.approx(getattr(step, name), rel=1e-6), (layer["number"], spec, name)
            plan = pipeline.decide(problem)
            for h in range(8):
                one, part = problem.head(h), plan.head(h, 8)
                assert run["heads"]["kept"][h] == part.kept(one)
                assert run["heads"]["density"][h] == part.density(one)
    for number, total in enumerate(one["totals"] for one in found["pipelines"]):
        density = [layer["runs"][number]["whole"]["density"] for layer in found["layers"]]
        assert total["density"] == pytest.approx(sum(density) / 8) and 0 < total["density"] < 1


def test_the_pictures_are_the_pairs_of_the_plan_and_the_mass_of_dense_attention(page, problems):
    found = embedded(page)
    n, cell = found["cells"], found["cell"]
    assert n * cell >= 320 > (n - 1) * cell and found["rows"] == cell, "a short prompt: every query is looked at"
    pooled = lambda x: Grid(320, cell).pooled(Grid(320, cell).pooled(x.float()).T).T  # noqa: E731
    for layer in found["layers"][::3]:
        problem = problems[layer["number"]]
        attention, runs = pictures(layer, n, 2)
        visible = problem.visible()[0, 0]
        scores = (problem.q[0].double() @ problem.k[0].repeat_interleave(4, 0).double().mT) * problem.scale
        probability = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        for h in range(8):
            share = pooled(probability[h]) / pooled(torch.ones(320, 1).expand(320, 320))[:, :1] * cell
            wanted = mass_levels(share.double()).masked_fill(pooled(visible) == 0, UNSEEN).int()
            assert (torch.from_numpy(attention[h].astype(int)) - wanted).abs().max() <= 1, "a level of rounding"
        for spec, picture in zip(SPECS, runs, strict=True):
            plan = Pipeline([Pipeline.from_spec(spec)], break_even=0).decide(problem)
            pairs, dropped = plan.pairs(problem)[0], plan.dropped(problem)[0].expand(8, -1)[..., None]
            for h in range(8):
                for plane, mine in enumerate((pairs[h] & ~dropped[h], pairs[h] & dropped[h])):
                    share = pooled(mine).double() / pooled(visible).double()
                    wanted = levels(share).masked_fill(pooled(visible) == 0, UNSEEN)
                    assert np.array_equal(picture[h, plane], wanted.numpy()), (layer["number"], spec, h, plane)


def test_tokens_are_counted_over_layers_and_heads(page, problems):
    found = embedded(page)
    numbers = lambda text: np.frombuffer(base64.b64decode(text), "<u2")  # noqa: E731
    for i, spec in enumerate(SPECS):
        kept, read, seen = torch.zeros(320), torch.zeros(320), torch.zeros(320)
        for problem in problems.values():
            plan = Pipeline([Pipeline.from_spec(spec)], break_even=0).decide(problem)
            kept += 8 - plan.dropped(problem)[0].expand(8, -1).sum(0)
            read += plan.pairs(problem)[0].sum((0, 1))
            seen += problem.visible()[0].sum((0, 1))
        assert np.array_equal(numbers(found["kept"][i]), kept.numpy())
        assert np.abs(numbers(found["read"][i]) / found["steps"] - (read / seen).numpy()).max() < 1e-5
    assert numbers(found["kept"][0]).min() < 64 and numbers(found["kept"][1]).min() == 64, "streaming drops no query"


def test_text_cannot_leave_the_data(page, prompt):
    text, found = page.read_text(), embedded(page)
    assert "".join(found["pieces"]) == bytes(prompt).decode() and len(found["pieces"]) == 320
    assert found["model"] == HOSTILE and found["made"]["command"] == HOSTILE
    assert text.count("<script") == text.count("</script>") == 2, "the data and the code"
    title = re.search("<title>(.*?)</title>", text, re.DOTALL)[1]
    assert "<" not in title and "__DATA__" in title, "what is put in is not looked into"
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)[^\s"'>]+|@import|url\(|https?://|fetch\(|XMLHttp""", text)
    assert outside == [], "one file that asks no other"
    assert "default-src 'none'" in text and "innerHTML" not in text


def test_a_letter_of_several_tokens_is_the_last_ones():
    wanted = ["a", "", "é", "", "", "", "😀", "z"]
    for tokenizer in (ByteTokenizer(), TextTokenizer(byte_tokenizer())):
        assert pieces(tokenizer, tokenizer.encode("".join(wanted).encode())) == wanted, tokenizer
    assert pieces(ByteTokenizer(), b"\xff\xc3a\xe2\x82") == [LOST, LOST, "a", LOST, LOST]


@given(st.binary(max_size=40))
def test_pieces_put_together_are_the_text(data):
    got = pieces(ByteTokenizer(), data)
    assert len(got) == len(data)
    kept = lambda text: text.replace(LOST, "")  # noqa: E731
    assert kept("".join(got)) == kept(data.decode(errors="replace")), "every letter, in order"


@given(st.integers(1, 700), st.integers(1, 40))
@settings(max_examples=40)
def test_the_queries_looked_at_are_in_every_cell_and_the_last_is_one(tokens, side):
    grid = Grid.of(tokens, side)
    rows = grid.rows()
    assert grid.cells <= side and rows[-1] == tokens - 1 and rows == sorted(set(rows))
    assert {row // grid.cell for row in rows} == set(range(grid.cells))
    assert len(rows) == tokens or grid.cell > 16


def test_levels_tell_none_and_all_from_nearly_so():
    assert levels(torch.tensor([0.0, 1e-9, 0.5, 1 - 1e-9, 1.0], dtype=torch.float64)).tolist() == [
        0,
        1,
        127,
        253,
        WHOLE,
    ]
    assert mass_levels(torch.tensor([0.0, 9e-5, 1e-4, 1.0])).tolist() == [0, 0, 1, WHOLE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    save_tiny_llama(path)
    (path / "text").write_text("Shall I compare thee to a summer's day?\n" * 20)
    return path


@pytest.fixture
def here(monkeypatch, capfd):
    """Return the exit code, stdout and stderr of a command."""

    def run(*words):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["sparsekit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


def test_the_command_writes_one_page(folder, tmp_path, here):
    schedule = Schedule({"1-2": SPECS[1], "default": "dense"}).save(tmp_path)
    words = ["explore", folder, "--prompt-file", folder / "text", "--most", 300, "--cells", 20]
    words += ["--out", tmp_path / "out"]
    ran = here(*words, "--pipeline", SPECS[0], "--pipeline", schedule)
    assert ran.returncode == 0, ran.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["explore.html"]
    found = embedded(tmp_path / "out" / "explore.html")
    assert [one["name"] for one in found["pipelines"]] == [SPECS[0], str(schedule)] and found["tokens"] == 300
    assert found["cells"] == 20
    assert [layer["runs"][1]["spec"] == "dense" for layer in found["layers"]] == [True, False, False, True]
    dense = found["layers"][0]["runs"][1]
    assert dense["whole"] == {
        "kept": 1.0,
        "density": 1.0,
        "mass": pytest.approx(1),
        "error": pytest.approx(0, abs=1e-12),
    }
    assert found["made"]["command"].startswith("sparsekit explore ") and "torch" in found["made"]["versions"]
    assert f"page: {tmp_path / 'out' / 'explore.html'}" in ran.stdout and "density 0." in ran.stdout


@pytest.mark.parametrize(
    "words,message",
    [
        (["--pipeline", "flex_prefil"], "there is no 'flex_prefil'"),
        (["--pipeline", "dense", "--most", 0], "most: got 0"),
        (["--pipeline", "dense", "--cells", 0], "cells: got 0"),
        (["--pipeline", "dense", "--most", 1], "prompt: got 1 token"),
        (["--pipeline", "dense", "--prompt-file", "gone"], "prompt-file: 'gone'"),
        (["--pipeline", "dense", "--device", "abacus"], "device: got 'abacus'"),
        (["--pipeline", "dense", "--out", "text"], "File exists: 'text'"),
        (["--pipeline", "text"], "pipeline: got the path 'text'"),
    ],
)
def test_a_command_that_cannot_be_says_so_in_one_line(folder, words, message, here, monkeypatch):
    monkeypatch.chdir(folder)
    ran = here("explore", folder, "--prompt-file", "text", *words)
    assert ran.returncode == 2 and message in ran.stderr and ran.stderr.count("\n") == 1, ran
    assert not list(folder.rglob("*.html*")), "no page, and no half of one"


def test_what_does_not_fit_is_said(model, prompt, tmp_path):
    with pytest.raises(ValueError, match="pipelines: got none"):
        explore(model, prompt, {})
    with pytest.raises(ValueError, match="layer 40"):
        explore(model, prompt, {"a": {40: "dense"}})
    with pytest.raises(ValueError, match="prompts: got str"):
        explore(model, "text", {"a": "dense"})
    found = explore(model, prompt[:8], {"a": "dense"}, cells=4)
    with pytest.raises(ValueError, match="pieces: got 2 for a prompt of 8 tokens"):
        write_page(found, tmp_path / "page.html", ["a", "b"])
    assert not list(tmp_path.iterdir())
    write_page(found, tmp_path / "page.html", ["a"] * 8)
    assert embedded(tmp_path / "page.html")["layers"][0]["sinks"] is None, "no query sees more than the first keys"
