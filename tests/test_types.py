"""Tests of parameters as users see them in `help`, and of their types in an editor or a type checker."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import sparsekit as sk
from sparsekit import stages

ROOT = Path(__file__).parent.parent
PARAMETERS = [getattr(stages, name) for name in stages.__all__]
PARAMETERS += [sk.Compress, sk.Attend, sk.Decompress, sk.Zeros, sk.SlidingWindow]
RIGHT = """
import sparsekit as sk
from sparsekit import recipes
own = lambda problem: sk.Plan()
sk.Pipeline([sk.TokenCoverage(per="layer"), own, sk.Decompress(fill=sk.SlidingWindow(4)), sk.Attend(break_even=0)])
sk.Pipeline([sk.Pipeline([]), recipes.balanced()], break_even="auto")
"""
WRONG = """
import sparsekit as sk
sk.Pipeline("token_coverage")
sk.Pipeline([sk.TokenCoverage])
sk.Pipeline([3])
sk.TokenCoverage(per="heads")
sk.Pipeline([], break_even="never")
sk.BlockThreshold(queries="al")
sk.Decompress(fill="zeros")
sk.Attend(backend="cuda")
sk.TokenCoverage(tua=0.1)
"""


@pytest.mark.parametrize("kind", PARAMETERS)
def test_each_parameter_is_explained_in_the_docstring(kind):
    said = re.findall(r"^    (\w+): \S.+$", inspect.getdoc(kind).partition("Args:\n")[2], re.MULTILINE)
    assert said == [field.name for field in fields(kind)]


def test_a_type_checker_finds_what_would_be_refused(tmp_path):
    pytest.importorskip("mypy", reason="the type checker is for developers")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *map(str, sorted(tmp_path.glob("*.py")))]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # mypy keeps its cache there
    found = re.findall(r"(\w+)\.py:(\d+): error", ran.stdout)
    expected = {("wrong", str(number)) for number in range(3, WRONG.count("\n") + 1)}
    assert set(found) == expected, ran.stdout + ran.stderr
