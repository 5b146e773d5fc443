"""Tests of the report: it makes tables, pictures and targets of records, and the README agrees with the records."""

import json
import shutil

import matplotlib.image
import pytest
import typer

from bench.records import FOLDER, append, read
from bench.speed import targets
from bench.speed.report import BEGIN, END, between, block, latest, main, markdown
from bench.speed.run import main as measure

README = f"# A title\n\n{BEGIN}\n{END}\n\nThe end.\n"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return a file with the records of a run at two tiny lengths."""
    path = tmp_path_factory.mktemp("records") / "cpu.jsonl"
    measure(tokens="1024,1536", repeats=3, suite="attend,stages", only="kept 0.3", records=path)
    return path


def test_the_committed_records_are_readable():
    rows = read(FOLDER / "cpu.jsonl")
    assert rows and all(row["gpu"] and row["run"] and row["length"] for row in rows)
    assert all(
        row["error"] <= 2 * row["plain_torch_error"] for row in rows if row.get("kind") == "ours" and "ms" in row
    )
    found = targets.newest(next(target for target in targets.TARGETS if target.name == "T8"), rows)
    assert found and found[0].share > 0.5, "T8 is measured"
    of_cpus = [target.name for target in targets.TARGETS if target.shape == "cpu"]
    assert {"T8", "C1", "C2"} <= set(of_cpus)
    assert targets.table(rows).count("not measured") == len(targets.TARGETS) - len(of_cpus), "the others are of GPUs"


def test_a_table_has_every_timed_record_and_every_reason(measured):
    rows = read(measured)
    lost = {key: rows[0][key] for key in ("run", "date", "shape", "length", "dtype", "inputs")}
    lost |= {"case": "blocks", "backend": "flash", "kind": "ours", "skipped": "it needs a GPU"}
    table = markdown([*rows, lost])
    assert table.count("\n| ") == sum("ms" in row for row in rows)
    assert "- blocks, flash: it needs a GPU" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_the_newest_record_of_a_case_counts(measured):
    rows = read(measured)
    newer = rows[0] | {"date": "2999-01-01T00:00:00+00:00", "run": "later"}
    assert [row["run"] for row in latest([newer, *rows]) if row["case"] == newer["case"]].count("later") == 1
    assert len(latest([newer, *rows])) == len(latest(rows))


def test_readme_and_page_follow_the_records(measured, tmp_path):
    folder, readme = tmp_path / "records", tmp_path / "README.md"
    folder.mkdir()
    shutil.copy(measured, folder / "nvidia-h200.jsonl")  # these are CPU times: only the drawing is tried
    readme.write_text(README)
    options = dict(records=folder, readme=readme, docs=tmp_path)
    with pytest.raises(typer.Exit):
        main(check=True, **options)
    assert readme.read_text() == README, "a check writes nothing"
    main(**options)
    main(check=True, **options)
    text = readme.read_text()
    assert (
        "| tokens, kept 0.3 | 0.30 | 0.090 |" in text and text.startswith("# A title") and text.endswith("The end.\n")
    )
    page = (tmp_path / "results.md").read_text()
    assert "TokenCoverage, kept 0.3, window fill" in page and "## Targets" in page
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem.rsplit("-")[-1] for path in pictures] == ["kept", "length", "steps"]
    for path in pictures:
        assert f"]({path.name})" in page
        picture = matplotlib.image.imread(path)
        assert picture.shape[0] > 200 and picture.std() > 0.05, "not an empty picture"
    slower = {"p20": 7e6, "p50": 7e6, "p80": 7e6}
    append(folder / "nvidia-h200.jsonl", [read(measured)[-1] | {"date": "2999-01-01T00:00:00+00:00", "ms": slower}])
    with pytest.raises(typer.Exit):
        main(check=True, **options)


def test_the_readme_has_the_chips_on_which_most_headline_cases_ran(measured):
    rows = read(measured)
    fewer = [row | {"gpu": "another"} for row in rows if row["case"] != "tokens, kept 0.3"]
    shown = block({"one": rows, "another": fewer})
    assert shown == block({"one": rows}) and "another" not in shown
    assert "on another." in block({"another": fewer}) and block({"one": rows, "two": rows}).count("One layer") == 2


def test_without_a_gpu_there_is_no_page(measured, tmp_path):
    (tmp_path / "README.md").write_text(README)
    main(records=measured.parent, readme=tmp_path / "README.md", docs=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "1.5K" not in block({"cpu": read(measured)}) and "| 1K: ms |" in block({"cpu": read(measured)})


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="put both where the table belongs"):
        between("no markers", "x")


def gpu_rows(run, date="2026-11-24T08:00:00+00:00"):
    """Return made-up records of a run that just meets every target: with a tenth more time it would miss them."""
    common = {
        "run": run, "date": date, "gpu": "a GPU", "length": 131072, "inputs": "structured", "dtype": "bfloat16",
        "shape": {"name": "llama-3.1-8b", "B": 1, "H": 32, "G": 8, "D": 128}, "kind": "ours", "backend": "flash",
    }  # fmt: skip

    def row(case, ms, **more):
        return common | {"case": case, "ms": {"p50": ms}, "steps": {}, "kept": 1.0, "density": 1.0} | more

    return [
        row("dense", 200.0, backend=targets.FA4, kind="dense"),
        row("blocks, density 0.1", 200 * 0.1 / 0.9, active=0.1),
        row("blocks, density 0.1", 99.0, active=0.1, backend="triton"),
        row("blocks, density 0.02", 200 * 0.02 / 0.75, active=0.02),
        row(
            "TokenCoverage, kept 0.3", 200 * 0.09 / 0.9, kept=0.3, steps={"score": 1.5, "attend": 9.0, "compress": 0.5}
        ),
        row("TokenCoverage, kept 0.5", 200 * 0.25 / 0.9, kept=0.5),
        row("FlexPrefill, gamma 0.9", 9.0, steps={"pattern": 2.0, "attend": 99.0}),
        row("stacked", 1.15 * (200 * 0.05 + 3), density=0.05),
    ]


def test_targets_are_met_at_their_edge_and_missed_beyond_it():
    rows = gpu_rows("one")
    for name in ("T1", "T2", "T3", "T4", "T5"):
        target = next(target for target in targets.TARGETS if target.name == name)
        found = targets.newest(target, rows)
        assert found and found[0].share == pytest.approx(1.0), (name, found)
    slower = json.loads(json.dumps(rows))
    for row in slower[1:]:
        row["ms"]["p50"] *= 1.1
        row["steps"] = {step: 1.1 * ms for step, ms in row["steps"].items()}
    table = targets.table(slower)
    assert "| met |" not in table and table.count("% of the way") == 5


def test_a_run_of_a_single_part_kept_is_no_answer_to_parts_kept():
    T4 = next(target for target in targets.TARGETS if target.name == "T4")
    few = [row for row in gpu_rows("newer", "2026-11-25T08:00:00+00:00") if row["case"] != "TokenCoverage, kept 0.5"]
    found = targets.newest(T4, [*gpu_rows("one"), *few])
    assert found and found[1]["run"] == "one"


def test_no_target_mixes_runs():
    rows = gpu_rows("one")
    rows[0] = rows[0] | {"run": "another"}  # the yardstick
    measured = [target.name for target in targets.TARGETS if targets.newest(target, rows)]
    assert measured == ["T2", "T3"], "only the two that need no yardstick"
    newer = gpu_rows("newer", "2026-11-25T08:00:00+00:00")
    found = targets.newest(targets.TARGETS[0], [*newer, *gpu_rows("older")])
    assert found and found[1]["run"] == "newer"


def test_calls_in_a_row_are_beside_dense_attention_of_their_own_run():
    def row(run, case, ms, row_ms, kind="ours", **more):
        one = gpu_rows(run)[4] | {"length": 32768, "inputs": "structured", "case": case, "kind": kind, "density": 0.1}
        return one | {"ms": {"p50": ms}, "row_ms": row_ms and {"p50": row_ms}} | more

    case = "TokenCoverage, kept 0.15, 512 votes, window fill with sinks"
    rows = [
        row("one", "dense", 99.0, 14.0, "dense"),
        row("one", "dense", 1.0, 21.0, "dense", backend="cuDNN"),  # the fastest in a row, not of single calls
        row("one", case, 50.0, 2.0),
        row("one", "TokenCoverage, kept 0.3", 50.0, 1.9),
    ]
    named = {target.name: target for target in targets.TARGETS}
    s4, o1 = (targets.newest(named[name], rows) for name in ("S4", "O1"))
    assert s4 and s4[0].text == "7.00 x" and s4[0].share == pytest.approx(1.0)
    assert o1 and o1[0].text == "0.50 ms" and o1[0].share == pytest.approx(1.0), "1.9 less a tenth of 14"
    without = [x | {"row_ms": None} for x in rows]
    assert targets.newest(named["S4"], without) is None


def test_a_fill_with_sinks_is_held_to_the_window_alone():
    """Check the yardstick of a fill with sinks: it is FlashAttention-4's window, not the fastest window kernel."""

    def row(case, backend, ms):
        one = gpu_rows("one")[4] | {"length": 16384, "inputs": "structured", "case": case, "backend": backend}
        return one | {"ms": {"p50": 9.0}, "row_ms": {"p50": ms}}

    alone, sunk = "fill, window 512", "fill, window 512, 16 sinks"
    rows = [row(alone, "flash", 2.0), row(alone, "hopper", 1.0), row(sunk, "flash", 4.0), row(sunk, "hopper", 2.3)]
    W1 = next(target for target in targets.TARGETS if target.name == "W1")
    found = targets.newest(W1, rows)
    assert found and found[0].share == pytest.approx(1.0) and found[0].text == "1.15 x, 2.30 ms"
    assert targets.newest(W1, rows[1:]) is None, "without the yardstick nothing can be said"


def test_memory_is_measured_against_what_must_be_held():
    target = next(target for target in targets.TARGETS if target.name == "T7")
    held = 2 * (32 + 8) * 2**20 * 128 * 2
    row = gpu_rows("one")[4] | {"length": 2**20, "peak_bytes": int(1.25 * held)}
    found = targets.newest(target, [row])
    assert found and found[0].share == pytest.approx(1.0, rel=1e-6) and "1.25 x" in found[0].text
