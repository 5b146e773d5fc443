"""Tests of packed records: they unpack to the same records, and the committed files are packed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.accuracy.pack import EACH, GONE, OF, PACKED, PART, SAME, packed
from bench.records import FOLDER
from sparsekit.evaluation.records import Records, unpacked

FILES = sorted((FOLDER / "front").rglob("*.jsonl"))  # `make bench` appends to the others
few = lambda *some: st.sampled_from(some)  # noqa: E731
answers = st.fixed_dictionaries(
    {"kind": few(*PACKED), "run": few("a", "b"), "pipeline": few("p", "q"), "length": few(1, 2), "seed": st.integers()},
    optional={"task": few("x", "y"), "values": st.lists(few(0, 1)), GONE: st.text()},
)
LONG = "x" * 60
others = st.fixed_dictionaries(
    {"kind": few("run", "price", "ours"), "run": few("a", "b")},
    optional={
        "versions": few({"torch": LONG}, {"torch": "2", "python": LONG}),
        "case": few("p", LONG),
        "ms": few(1, 2),
    },
)


def of(line):
    """Return the key by which records are packed together: their common fields and the names of all fields."""
    flat = next(unpacked([line]))
    return *(flat.get(name) for name in SAME), *sorted(flat)


def mine(lines, name):
    return [line for line in lines if line["kind"] in PACKED and of(line) == name]


@given(lines=st.lists(answers | others), more=st.lists(answers | others, max_size=3))
def test_packed_lines_are_the_same_records_and_one_for_each_task(lines, more):
    made = packed(lines)
    back = list(unpacked(made))
    bare = [{name: value for name, value in line.items() if name != GONE} for line in lines]
    order = lambda some: sorted(json.dumps(line, sort_keys=True) for line in some)  # noqa: E731
    assert order(back) == order(bare)
    assert packed(back) == made
    asked = [of(line) for line in bare if line["kind"] in PACKED]
    assert sum(PART not in line for line in made) == len(set(asked)) + len(bare) - len(asked)
    for name in set(asked):
        assert mine(back, name) == mine(bare, name), "in the order they were asked"
    assert list(unpacked([*made, *more])) == [*back, *more], "more lines may follow"
    assert list(unpacked([*made, *packed(more)])) == [*back, *unpacked(packed(more))], "and a packed file"


def test_what_lines_have_in_common_stands_once():
    rows = [{"kind": "ours", "run": "a", "versions": {"torch": LONG}, "ms": ms} for ms in range(9)]
    part, *rest = packed(rows)
    assert part == {PART: part[PART], "versions": {"torch": LONG}} and len(rest) == 9
    assert all(line == {"kind": "ours", "run": "a", "ms": ms, OF: [part[PART]]} for ms, line in enumerate(rest))
    assert packed([*rows, rows[0] | {"ms": 10}])[:10] == [part, *rest], "packing again leaves lines as they are"
    assert len({line[PART] for line in packed(different()) if PART in line}) == 3000


def different():
    """Return records with so many parts that some part names of four letters should collide by chance."""
    return [{"kind": "ours", "run": "a", "case": f"{LONG}{n // 2}"} for n in range(6000)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_committed_records_are_packed(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == packed(unpacked(lines)), "run python -m bench.accuracy.pack on it"


def test_a_packed_line_without_a_run_is_no_record(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"kind": "answers", EACH: {"seed": [1, 2]}}) + "\n")
    with pytest.raises(ValueError, match="line 1 .* is no record"):
        Records(path)


@pytest.mark.parametrize(
    "second", ['{"kind": "run", "run": "a", "of": ["gone"]}', '{"part": "b"}\n{"run": "a", "of": ["b"]}', "[1]"]
)
def test_a_line_without_its_part_is_no_record(tmp_path, second):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"kind": "run", "run": "a"}}\n{second}\n')
    with pytest.raises(ValueError, match=f"line {1 + len(second.splitlines())} of .* is no record"):
        Records(path)
