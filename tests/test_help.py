"""Help is there at once: nothing heavy is imported before a command runs."""

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


@pytest.mark.parametrize("name", ["/bin/sparsekit", "sparsekit.exe"])
def test_a_script_of_the_packages_name_imports_torch_when_it_asks_for_it(name):
    ask = f"import sys; sys.argv[0] = {name!r}; import sparsekit.cli; print('torch' in sys.modules); "
    ask += "import sparsekit as sk; print(sk.oracle); "
    ask += "from sparsekit import *; print(Pipeline([TokenCoverage()]), 'torch' in sys.modules, hasattr(sk, 'typo'))"
    first, oracle, last = python("-c", ask).stdout.splitlines()
    assert first == "False" and oracle.startswith("<function oracle") and last.endswith(" True False")


@pytest.mark.parametrize("words", [["-c", "{}"], ["-c", "import sys; sys.argv = []; {}"]])
def test_whoever_else_imports_the_package_has_its_operators(words):
    look = "import sparsekit; import torch; print(torch.ops.sparsekit.attention)"
    assert "sparsekit.attention" in python(*(word.format(look) for word in words)).stdout
