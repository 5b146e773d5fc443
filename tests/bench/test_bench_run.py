"""Tests of the benchmark as a user runs it: its records, the arguments it refuses, the cases it skips."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench.records import read
from bench.speed.inputs import SHAPES
from bench.speed.run import main
from sparsekit import dispatch

ROOT = Path(__file__).parents[2]
FIELDS = {
    "run", "gpu", "case", "backend", "shape", "length", "kept", "density", "ms", "dense_ms", "dense", "error",
    "plain_torch_error", "steps", "syncs", "peak_bytes", "versions", "commit", "clean", "date", "inputs", "dtype",
}  # fmt: skip


def run(path, **options):
    """Run the benchmark in this process at a short length; return the records that it wrote."""
    main(**{"tokens": "1024", "repeats": 3, "records": path} | options)
    return read(path)


def test_a_run_from_a_fresh_shell_writes_checked_records(tmp_path):
    path = tmp_path / "new" / "cpu.jsonl"
    words = ["--lengths", "1024", "--repeats", "3", "--suite", "attend,peers", "--only", "kept 0.3", "--records", path]
    ran = subprocess.run(
        [sys.executable, "-m", "bench.speed.run", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "tokens, kept 0.3" in ran.stdout and "over dense" in ran.stdout
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    timed = {row["case"]: row for row in rows if "ms" in row}
    assert set(timed) == {
        "dense", "tokens, kept 0.3", "tokens, kept 0.3, indexed", "tokens, kept 0.3, window fill",
        "TokenCoverage, kept 0.3",
    }  # fmt: skip
    for row in timed.values():
        assert FIELDS <= set(row)
        assert row["error"] <= 2 * row["plain_torch_error"]
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        assert row["dense"] == "torch SDPA" and row["dense_ms"] == timed["dense"]["ms"]
    assert len({row["run"] for row in rows}) == 1
    pipeline = timed["TokenCoverage, kept 0.3"]
    assert pipeline["kept"] == pytest.approx(0.3, abs=1e-3) and pipeline["density"] == pytest.approx(0.09, abs=2e-3)
    assert {"score", "select", "compress", "attend", "decompress"} <= set(pipeline["steps"])
    assert set(timed["tokens, kept 0.3, indexed"]["steps"]) == {"attend"}
    reasons = {row["case"]: row["skipped"] for row in rows if "skipped" in row}
    assert set(reasons) == {"token_sparse", "flex_prefill", "xattention", "minference"}
    assert all("--peers" in reason for reason in reasons.values())
    assert [file.name for file in path.parent.iterdir()] == ["cpu.jsonl"], "nothing half-written is left"


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """Return a function that installs a backend with the given source code as its `attend`."""

    def make(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "attend.py").write_text(
            f"from sparsekit.ops import attend as right\n\ndef why_not(problem, plan):\n    return None\n\n{text}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(dispatch.BACKENDS, name, name)

    return make


def test_a_wrong_kernel_is_refused_and_the_others_are_timed(tmp_path, backend, capsys):
    backend(
        "lying",
        "def attend(problem, plan):\n    out = right.attend(problem, plan)\n    out.o.mul_(1.001)\n    return out",
    )
    backend("broken", "def attend(problem, plan):\n    raise RuntimeError('out of cheese')")
    path = tmp_path / "records.jsonl"
    with pytest.raises(typer.Exit) as stopped:
        run(path, only="blocks, density 0.5", backends="lying,broken,cpu")
    assert stopped.value.exit_code == 1
    rows = {row["backend"]: row for row in read(path)}
    assert "wrong, so not timed" in rows["lying"]["refused"] and "ms" not in rows["lying"]
    assert rows["broken"]["refused"] == "RuntimeError: out of cheese"
    assert rows["cpu"]["ms"]["p50"] > 0
    assert "lying: refused: error 1.00e-03" in " ".join(capsys.readouterr().err.split())


def test_a_backend_that_cannot_is_skipped_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS, "absent", "sparsekit_kernels.absent")
    first = run(tmp_path / "records.jsonl", only="dense", backends="absent,cpu", suite="attend")
    lost = [row for row in first if "skipped" in row]
    assert [row["backend"] for row in lost] == ["absent"]
    assert "there is no sparsekit_kernels.absent" in lost[0]["skipped"]
    again = run(tmp_path / "records.jsonl", only="dense", suite="attend", peers=None)
    assert again[: len(first)] == first and len(again) > len(first), "records are appended, never changed"
    assert again[-1]["run"] != first[0]["run"]


def test_auto_can_be_tried_before_it_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setitem(dispatch.AUTO, "cpu", dispatch.AUTO["cpu"])  # put back what the run sets
    rows = run(tmp_path / "records.jsonl", only="TokenCoverage, kept 0.3", suite="peers", auto="reference")
    timed = {row["case"]: row for row in rows if "ms" in row}
    assert timed["TokenCoverage, kept 0.3"]["backend"] == "reference"
    assert timed["TokenCoverage, kept 0.3"]["auto"] == ["reference"]


def test_checkouts_that_are_not_there_are_named(tmp_path):
    rows = run(tmp_path / "records.jsonl", only="kept 0.3", suite="peers", peers=tmp_path)
    reasons = {row["case"]: row["skipped"] for row in rows if "skipped" in row}
    assert "no FlexPrefill in the folder" in reasons["flex_prefill"]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"suite": "atend"}, "suite: got 'atend'; allowed are attend, stages, short, peers, memory"),
        ({"tokens": "16Q"}, "lengths: got '16Q'"),
        ({"tokens": "0"}, "lengths: got '0'"),
        ({"shape": "llama"}, "shape: got 'llama'"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"inputs": "real"}, "inputs: got 'real'"),
        ({"device": "abacus"}, "device: got 'abacus'; allowed are cpu, cuda"),
        ({"auto": "fast"}, "auto: got 'fast'"),
        ({"yardsticks": "cuDNN"}, "dense: got 'cuDNN'"),
        ({"only": "no such case"}, "0 cases"),
        ({"repeats": 2}, "2 repeats"),
    ],
)
def test_bad_options_say_what_is_allowed(tmp_path, options, message):
    with pytest.raises(typer.BadParameter, match=message):
        run(tmp_path / "records.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_the_shapes_are_those_of_the_models():
    assert all(shape.H % shape.G == 0 for shape in SHAPES.values())
    llama = SHAPES["llama-3.1-8b"]
    assert (llama.H, llama.G, llama.D) == (32, 8, 128)


@pytest.mark.gpu
def test_a_gpu_has_events_synchronisations_and_memory(tmp_path):
    rows = run(tmp_path / "gpu.jsonl", device="cuda", tokens="4096", suite="stages", only="TokenCoverage, kept 0.3")
    timed = [row for row in rows if "ms" in row]
    assert any(row["kind"] == "dense" for row in timed)
    for row in timed:
        assert row["peak_bytes"] > 0 and row["syncs"] is not None and row["flash2_ms"]
