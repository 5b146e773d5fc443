"""Tests of what maintainers rely on: one script for all checks, one version, tested bounds, a small repository."""

import re
import subprocess
from pathlib import Path

import pytest

import sparsekit

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LOWEST = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "lowest.txt").read_text(), re.MULTILINE))


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_workflow_calls_the_script_that_ci_runs():
    jobs = read(".github/workflows/ci.yml")
    assert re.search(r"^ +- run: bash \.ci/run$", jobs, re.MULTILINE)
    for constraints in re.findall(r"constraints: (\S+)", jobs):
        assert (ROOT / constraints).exists()
    named = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    assert sorted(named) == sorted(re.findall(r'python(?:-version)?: "(.*)"', jobs)), "what is claimed is tried"
    script = read(".ci/run")
    assert "CONSTRAINTS" in read("Makefile") and "make check" in script and "make test docs" in script


def test_the_hooks_are_those_of_make_check_and_fetch_nothing():
    hooks = read(".pre-commit-config.yaml")
    assert re.findall("repo: (.*)", hooks) == ["local"]
    for tool in re.findall(r"^\t\$\(BIN\)/(\w+)", read("Makefile").split("\ncheck:")[1].split("\n\n")[0], re.MULTILINE):
        assert f"entry: .venv/bin/{tool}" in hooks


def test_one_version_everywhere():
    newest = re.search(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)[1]
    cited = re.search("^version: (.*)$", read("CITATION.cff"), re.MULTILINE)[1]
    assert newest == cited == sparsekit.__version__ == re.search('^version = "(.*)"$', PYPROJECT, re.MULTILINE)[1]


@pytest.mark.parametrize("name", sorted(LOWEST))
def test_the_lowest_versions_are_the_bounds(name):
    bound = re.search(rf'"{name}>=([\d.]+)', PYPROJECT)
    assert bound, f"{name} has no bound"
    pad = lambda version: (*map(int, version.split(".")), 0, 0)[:3]  # noqa: E731
    assert pad(bound[1]) == pad(LOWEST[name]), "raise both, and run the suite"


def test_the_bounds_are_told():
    contributing = read("CONTRIBUTING.md")
    python = re.search('requires-python = ">=(.*)"', PYPROJECT)[1]
    assert f"| {python} | {LOWEST['torch'][:-2]} | {LOWEST['transformers'][:-2]} |" in contributing
    assert f"Python {python} and torch {LOWEST['torch'][:-2]}, or newer" in read("README.md")


def test_the_rooms_of_the_map_are_there():
    files = re.findall(
        r"`((?:sparsekit/|bench/|tests/)?[\w/]+(?:\.py|/))`",
        read("CONTRIBUTING.md").split("### The map")[1].split("\n## ")[0],
    )
    assert len(files) > 15
    assert not [name for name in files if not ((ROOT / name).exists() or (ROOT / "sparsekit" / name).exists())]


def test_the_tree_stays_small():
    asked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("this is no checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in asked.stdout.split("\0") if (ROOT / name).is_file()}
    assert sum(sizes.values()) < 20e6, sorted(sizes.items(), key=lambda one: -one[1])[:10]
