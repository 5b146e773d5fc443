"""Packed records say what the records said, and the committed ones are packed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.accuracy.pack import EACH, GONE, PACKED, SAME, packed
from bench.records import FOLDER
from sparsekit.evaluation.records import Records, unpacked, with_new_names

FILES = sorted((FOLDER / "front").rglob("*.jsonl"))
few = lambda *some: st.sampled_from(some)  # noqa: E731
answers = st.fixed_dictionaries(
    {"kind": few(*PACKED), "run": few("a", "b"), "pipeline": few("p", "q"), "length": few(1, 2), "seed": st.integers()},
    optional={"task": few("x", "y"), "values": st.lists(few(0, 1)), GONE: st.text()},
)
others = st.fixed_dictionaries({"kind": few("run", "price"), "run": few("a", "b")})


def of(line):
    """Return what a packed line is of: its task, and which names its records have."""
    flat = {name: value for name, value in line.items() if name != EACH} | line.get(EACH, {})
    return *(flat.get(name) for name in SAME), *sorted(flat)


def mine(lines, name):
    return [line for line in lines if line["kind"] in PACKED and of(line) == name]


@given(st.lists(answers | others))
def test_packed_lines_are_the_same_records_and_one_for_each_task(lines):
    made = packed(lines)
    back = [record for line in made for record in unpacked(line)]
    bare = [{name: value for name, value in line.items() if name != GONE} for line in lines]
    order = lambda some: sorted(json.dumps(line, sort_keys=True) for line in some)  # noqa: E731
    assert order(back) == order(bare)
    once = [of(line) for line in made if line["kind"] in PACKED]
    assert len(once) == len(set(once)) and packed(back) == made
    for name in {of(line) for line in bare if line["kind"] in PACKED}:
        assert mine(back, name) == mine(bare, name), "in the order they were asked"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_committed_records_are_packed(path):
    lines = [with_new_names(json.loads(line)) for line in path.read_text().splitlines()]
    assert lines == packed(Records(path).lines), "run python -m bench.accuracy.pack on it"


def test_a_packed_line_without_a_run_is_no_record(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"kind": "answers", EACH: {"seed": [1, 2]}}) + "\n")
    with pytest.raises(ValueError, match="line 1 .* is no record"):
        Records(path)
