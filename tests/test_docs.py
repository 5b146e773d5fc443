"""The pages that are written from the code say what the code says."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_the_stage_page_is_up_to_date():
    subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=True)


def test_the_results_are_those_of_the_records():
    subprocess.run([sys.executable, "bench/report.py", "--check"], cwd=ROOT, check=True)


def test_the_readme_example_runs():
    """Every python block of the README runs as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, capture_output=True)
