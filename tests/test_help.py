"""Tests that help is fast: it imports nothing heavy."""

import subprocess
import sys

import pytest

from sparsekit.cli import app

HEAVY = ("torch", "transformers", "numpy", "matplotlib")
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


def python(*words):
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([name, "-h"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    ran = python("-X", "importtime", "-m", "sparsekit", *words)
    imported = {line.rsplit("|", 1)[-1].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported and not imported.intersection(HEAVY)
    assert "Usage: " in ran.stdout and "--help" in ran.stdout


@pytest.mark.parametrize(
    "name,words",
    [("/bin/sparsekit", []), ("sparsekit.exe", ["run", "-h"]), ("/bin/sparsekit", ["run", "--prompt-file", "-h"])],
)
def test_the_public_names_are_there_even_where_help_was_asked(name, words):
    ask = f"import sys; sys.argv = {[name, *words]}; import sparsekit.cli; print('torch' in sys.modules); "
    ask += "import sparsekit.calibrate, sparsekit as sk; from sparsekit import *; "
    ask += "print(sk.Pipeline([TokenCoverage()]), 'torch' in sys.modules, hasattr(sk, 'typo'))"
    first, last = python("-c", ask).stdout.splitlines()
    assert first == "False" and last.endswith(" True False")


@pytest.mark.parametrize("words", [["sparsekit", "run", "x"], ["a.py", "-h"], []])
def test_all_others_who_import_the_package_have_its_operators(words):
    look = f"import sys; sys.argv = {words}; import sparsekit; import torch; print(torch.ops.sparsekit.attention); "
    ran = python("-c", f"{look}print(sparsekit.oracle)").stdout.splitlines()
    assert "sparsekit.attention" in ran[0] and ran[1].startswith("<function oracle")
