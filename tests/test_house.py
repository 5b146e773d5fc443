"""Tests of the imports between parts. A part, or room, is a file or a folder of the package."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sparsekit

ROOT = Path(sparsekit.__file__).parent
FACES = ("__init__.py", "__main__.py")  # users import the one, Python runs the other; they are no rooms


def rooms() -> dict[str, list[Path]]:
    """Return the files of each room."""
    found = {path.stem: [path] for path in ROOT.glob("*.py") if path.name not in FACES}
    return found | {path.parent.name: [*path.parent.rglob("*.py")] for path in ROOT.glob("*/__init__.py")}


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the names below the package that a file imports, at its top or inside a function."""
    here = path.relative_to(ROOT.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            whole = (*base, *(node.module or "").split(".")) if node.module else base
            if whole[:1] == ("sparsekit",):
                yield from ((*whole[1:], name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")[1:]) for name in node.names if name.name.startswith("sparsekit."))


def arrows(files: dict[str, list[Path]]) -> dict[str, set[str]]:
    """Return which other rooms each room imports."""
    return {
        room: {name[0] for path in paths for name in imported(path) if name and name[0] in files} - {room}
        for room, paths in files.items()
    }


def test_no_room_imports_one_that_imports_it():
    found = arrows(rooms())
    assert len(found) > 30 and {"plan", "spec", "execute"} <= found["pipeline"], "the imports are seen"
    order = [*TopologicalSorter(found).static_order()]
    assert order.index("problem") < order.index("plan") < order.index("pipeline") < order.index("commands")


def test_a_circle_would_be_seen():
    found = arrows(rooms()) | {"plan": {"pipeline"}}
    with pytest.raises(CycleError):
        TopologicalSorter(found).prepare()
