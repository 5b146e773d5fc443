"""Tests of the prefill benchmark of a whole model: its records, the arguments it refuses, the tables of the records."""

import shutil

import pytest
import torch
import typer

from bench.records import append, read
from bench.speed import end_to_end
from bench.speed.contender import Skipped
from bench.speed.end_to_end import (
    CASES,
    DECIDED,
    MODELS,
    behind,
    build,
    first_token,
    look,
    main,
    named,
    prompt,
    watched,
)
from bench.speed.report import BEGIN, END, layers
from bench.speed.report import main as report
from bench.speed.run import main as measure
from sparsekit import dispatch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "cpu.jsonl"
    main(tokens="1024,256", records=path)
    return path


@pytest.fixture(scope="module")
def model():
    return build("tiny", torch.float32, CPU)


def test_every_case_is_timed_beside_the_fastest_dense_one(records):
    rows = read(records)
    assert [row["length"] for row in rows] == [256] * len(CASES + DECIDED) + [1024] * len(CASES + DECIDED)
    assert {row["case"] for row in rows} == {named(case) for case in CASES + DECIDED}
    for length in (256, 1024):
        mine = {row["case"]: row for row in rows if row["length"] == length}
        fastest = min(mine[named(case)]["ms"]["p50"] for case in CASES if case.dense)
        for row in mine.values():
            assert row["kind"] == "end to end" and row["run"] == rows[0]["run"]
            assert row["dense_ms"] == mine[f"end to end, {row['dense']}"]["ms"] and row["dense_ms"]["p50"] == fastest
            assert row["speed_up"] == pytest.approx(fastest / row["ms"]["p50"], abs=1e-3)
            assert 0 < row["attention_share"] < 1 and row["attention_ms"] > 0
            assert len(row["layers"]["kept"]) == len(row["layers"]["density"]) == row["shape"]["layers"]


def test_the_parameters_fix_the_work_of_every_layer(records):
    rows = {row["case"]: row for row in read(records) if row["length"] == 1024}
    for case in CASES:
        of_layers = rows[named(case)]["layers"]
        assert len(set(of_layers["kept"])) == 1, "random weights, the same number of tokens"
        assert max(of_layers["density"]) - min(of_layers["density"]) < 0.02
        if case.dense:
            assert set(of_layers["density"]) == {1.0}
    tokens, lists, both = (
        rows[f"end to end, {name}"] for name in ("TokenCoverage, kept 0.3", "FlexPrefill", "stacked")
    )
    assert tokens["kept"] == both["kept"] == pytest.approx(0.3, abs=1e-3)
    assert tokens["density"] == pytest.approx(0.09, abs=2e-3)
    assert lists["kept"] == 1.0 and lists["density"] < 0.5 and both["density"] < tokens["density"]


def test_a_layer_is_held_against_float64(records):
    rows = read(records)
    assert [row["case"] for row in rows if row["error"] is None] == ["end to end, dense, SDPA"] * 2
    assert all(row["error"] <= 2 * row["plain_torch_error"] for row in rows if row["error"] is not None)


def test_a_wrong_layer_is_not_timed(tmp_path, monkeypatch):
    (tmp_path / "lying").mkdir()
    (tmp_path / "lying" / "__init__.py").touch()
    (tmp_path / "lying" / "attend.py").write_text(
        "from sparsekit.ops import attend as right\n\ndef why_not(problem, plan):\n    return None\n\n"
        "def attend(problem, plan):\n    out = right.attend(problem, plan)\n    out.o.mul_(1.001)\n    return out\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dispatch.BACKENDS, "lying", "lying")
    monkeypatch.setitem(dispatch.AUTO, "cpu", ("lying", *dispatch.AUTO["cpu"]))
    with pytest.raises(typer.Exit) as stopped:
        main(tokens="256", records=tmp_path / "records.jsonl", only="TokenCoverage")
    assert stopped.value.exit_code == 1
    rows = {row["case"]: row for row in read(tmp_path / "records.jsonl")}
    assert "wrong, so not timed" in rows["end to end, TokenCoverage, kept 0.3"]["refused"]
    assert rows["end to end, dense, SDPA"]["dense"] == "dense, SDPA", "the yardstick is one that is right"


def test_a_layer_that_runs_dense_is_no_sparse_result():
    model = build("tiny", torch.float32, CPU)
    own = torch.ones(1, 1, 256, 256, dtype=torch.bool).tril()
    model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | dict(attention_mask=own)), with_kwargs=True
    )
    with (
        pytest.warns(UserWarning, match="runs dense"),
        pytest.raises(Skipped, match="layer 1 ran dense: it has a mask"),
    ):
        watched(CASES[2], model, prompt(model, 256))


def test_looking_changes_neither_the_answer_nor_the_model(model):
    ids = prompt(model, 300)
    before = first_token(model, ids)
    for case in CASES:
        found = look(case, model, ids)
        assert 0 < found["attention_share"] < 1 and found["syncs"] is None and found["attention_bytes"] is None
        assert model.config._attn_implementation == "sdpa"
    assert torch.equal(first_token(model, ids), before)


def test_a_model_is_seeded_and_has_its_dtype_throughout(model):
    again, half = build("tiny", torch.float32, CPU), build("tiny", torch.bfloat16, CPU)
    torch.rand(1)  # so that a build that left its own state behind would show
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    build("tiny", torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32


def test_the_shape_is_that_of_the_model():
    with torch.device("meta"):
        whole = end_to_end.AutoModelForCausalLM.from_config(end_to_end.LlamaConfig(**MODELS["llama-3.1-8b"]))
    assert sum(x.numel() for x in whole.parameters()) == 8_030_261_248, "as its model card says"
    assert whole.config.rope_parameters["rope_theta"] == 500000.0


def test_slow_dense_attention_is_left_out_where_length_makes_it_no_faster():
    rows = [{"case": named(CASES[0]), "ms": {}, "speed_up": 0.9}, {"case": named(CASES[2]), "ms": {}, "speed_up": 0.5}]
    assert behind(CASES, rows, 32768) == [CASES[0]]
    assert not behind(CASES, rows, 1024)
    assert not behind(CASES, [rows[0] | {"speed_up": 0.95}], 32768)


def test_it_has_a_table_of_its_own_and_changes_no_other(records, tmp_path):
    folder, readme = tmp_path / "records", tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = dict(records=folder, readme=readme, docs=tmp_path)
    path = folder / "nvidia-h200.jsonl"  # these are CPU times: only the tables are tried
    measure(tokens="1024", repeats=3, suite="stages", only="kept 0.3", records=path)
    report(**options)
    before, table = (tmp_path / "results.md").read_text(), readme.read_text()
    lost = {"case": "end to end, stacked", "backend": "", "refused": "out of cheese"}
    whole = read(records)
    kept = {key: whole[-1][key] for key in ("run", "date", "gpu", "shape", "dtype", "inputs", "kind", "model_bytes")}
    append(path, [*whole, kept | {"length": 2048} | lost])
    with pytest.raises(typer.Exit):
        report(check=True, **options)
    report(**options)
    report(check=True, **options)
    page = (tmp_path / "results.md").read_text()
    assert page.startswith(before) and readme.read_text() == table
    added = page.removeprefix(before)
    assert "### Prefill of a whole model: tiny, 3 layers, float32" in added
    lines = [line for line in added.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(whole) and len({line.count("|") for line in lines}) == 1
    assert "- stacked, 2K: REFUSED: out of cheese" in added and "- stacked, 1K: `token_coverage(" in added
    assert not layers(whole)
    shutil.copy(records, path)
    report(**options)
    assert "Prefill of a whole model" in (tmp_path / "results.md").read_text(), "a chip with no other records"


@pytest.mark.parametrize(
    "options,message",
    [
        ({"device": "abacus"}, "device: got 'abacus'; allowed are cpu, cuda"),
        ({"model": "gpt"}, "model: got 'gpt'; allowed are llama-3.1-8b, tiny"),
        ({"tokens": "16Q"}, "lengths: got '16Q'"),
        ({"only": "no such case"}, "2 cases and 3 repeats"),
        ({"repeats": 2}, f"{len(CASES + DECIDED)} cases and 2 repeats"),
    ],
)
def test_bad_options_say_what_is_allowed(tmp_path, options, message):
    with pytest.raises(typer.BadParameter, match=message):
        main(**{"records": tmp_path / "records.jsonl"} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_gpu_has_synchronisations_and_memory(tmp_path):
    main(device="cuda", model="tiny", tokens="2048", records=tmp_path / "gpu.jsonl", only="TokenCoverage")
    timed = [row for row in read(tmp_path / "gpu.jsonl") if "ms" in row]
    assert any(row["what"] == "dense" and row["syncs"] == 0 for row in timed)
    for row in timed:
        assert row["peak_bytes"] > row["model_bytes"] and row["attention_bytes"] > 0 and row["syncs"] is not None
