"""The pages that are written from the code say what the code says."""

import pathlib
import re
import subprocess
import sys

import pytest

from sparsekit import registry

ROOT = pathlib.Path(__file__).parent.parent


def test_the_stage_page_and_the_explored_one_are_up_to_date():
    subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=True)


def test_the_results_are_those_of_the_records():
    subprocess.run([sys.executable, "-m", "bench.speed.report", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("page", ["README.md", "docs/schedules.md", "docs/explore.md", "docs/add_a_stage.md"])
def test_the_examples_run(page, monkeypatch):
    """Every python block of the page runs as it stands, with no name of another."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    monkeypatch.setattr(registry, "_own", {})  # what an example registers is gone after it
    for block in blocks:
        exec(compile(block, page, "exec"), {"__name__": "__main__"})
