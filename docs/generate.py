"""Writes docs/stages.md from the stages themselves: python docs/generate.py [--check]"""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

from sparsekit import stages
from sparsekit.spec import snake

PAGE = Path(__file__).with_name("stages.md")


def page() -> str:
    """The page: one section a stage, its docstring, its parameters with their comments, its DENSE setting."""
    parts = ["# Stages\n\nWritten by `make docs` from `sparsekit/stages/`; change it there.\n"]
    for info in pkgutil.iter_modules(stages.__path__):
        module = importlib.import_module(f"sparsekit.stages.{info.name}")
        cls = type(module.EXAMPLES[0])
        title, _, text = inspect.getdoc(module).partition("\n")
        rows = re.findall(r"^    (\w+): ([^=#\n]+?)(?: = ([^#\n]+?))?  # (.+)$", inspect.getsource(cls), re.MULTILINE)
        table = "\n".join(f"| `{n}` | {t} | {d} | {c} |".replace(" | None |", " or None |", 1) for n, t, d, c in rows)
        parts.append(
            f"## {cls.__name__}\n\n**{title}**\n{text}\n\n"
            f"Chooses {cls.chooses}; `{snake(cls.__name__)}` in a spec; `{module.DENSE!r}` is dense attention.\n\n"
            f"| parameter | type | default | meaning |\n|---|---|---|---|\n{table}\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/stages.md is not what the stages say: run make docs")
