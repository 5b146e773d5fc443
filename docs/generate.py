"""Writes docs/stages.md from the stages themselves, and docs/explore.html by the page of today around its data.

python docs/generate.py [--check]
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from sparsekit import stages
from sparsekit.explore import page as explored
from sparsekit.registry import snake

PAGE = Path(__file__).with_name("stages.md")
EXPLORED = Path(__file__).with_name("explore.html")


def page() -> str:
    """The page: one section a stage, its docstring, its parameters, its DENSE setting."""
    parts = ["# Stages\n\nWritten by `make docs` from `sparsekit/stages/`; change it there.\n"]
    for info in pkgutil.iter_modules(stages.__path__):
        module = importlib.import_module(f"sparsekit.stages.{info.name}")
        cls = type(module.EXAMPLES[0])
        title, _, text = inspect.getdoc(module).partition("\n")
        rows = (f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in parameters(cls))
        table = "\n".join(rows)
        parts.append(
            f"## {cls.__name__}\n\n**{title}**\n{text}\n\n"
            f"Chooses {cls.chooses}; `{snake(cls.__name__)}` in a spec; `{module.DENSE!r}` is dense attention.\n\n"
            f"| parameter | type | default | meaning |\n|---|---|---|---|\n{table}\n"
        )
    return "\n".join(parts)


def parameters(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and meaning of each field of a stage, a policy or a fill.

    The meanings are those of the class's docstring, of its section Args.
    """
    source, args = inspect.getsource(cls), inspect.getdoc(cls).partition("Args:\n")[2]
    defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    for name, meaning in re.findall(r"^    (\w+): (.+)$", args, re.MULTILINE):
        kind = re.search(rf"^    {name}: ([^=\n]+?)(?: = .+)?$", source, re.MULTILINE)[1]
        default = repr(defaults[name]) if name in defaults else ""
        if match := re.fullmatch(r"Literal\[(.*)\]", kind):
            kind = match[1].replace(", ", " or ")
        yield name, kind.replace(" | ", " or "), default, meaning


def explored_again() -> str:
    """Return the page of sparsekit explore that is there, its data as they are."""
    found = json.loads(re.search(r'id="data">(.*?)</script>', EXPLORED.read_text(encoding="utf-8"), re.DOTALL)[1])
    return explored.page(found, found["model"])


if __name__ == "__main__":
    for file, text in ((PAGE, page()), (EXPLORED, explored_again())):
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{file.name} is not what the code says: run make docs")
