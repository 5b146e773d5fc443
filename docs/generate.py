"""Writes the pages of docs/ that are generated from the code, and docs/explore.html: its data in the current page.

python docs/generate.py [--check]
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from typer.models import ArgumentInfo

from sparsekit import Pipeline, cli, fills, recipes, stages
from sparsekit.explore import page as explored
from sparsekit.policies import POLICIES
from sparsekit.presets import PRESETS
from sparsekit.registry import snake

DOCS = Path(__file__).parent
EXPLORED = DOCS / "explore.html"
FILLS = (fills.Zeros, fills.SlidingWindow)
NOTE = "Written by `make docs` from `{}`; change it there."
Row = tuple[str, str, str, str]


def stage_page() -> str:
    """Return a section per stage: its docstring, its parameters, its DENSE setting."""
    parts = [f"# Stages\n\n{NOTE.format('sparsekit/stages/')}\n"]
    for info in pkgutil.iter_modules(stages.__path__):
        module = importlib.import_module(f"sparsekit.stages.{info.name}")
        cls = type(module.EXAMPLES[0])
        title, _, text = inspect.getdoc(module).partition("\n")
        parts.append(
            f"## {cls.__name__}\n\n**{title}**\n\n{_parted(text.strip())}\n\n"
            f"Chooses {cls.chooses}; `{snake(cls.__name__)}` in a spec; `{module.DENSE!r}` is dense attention.\n\n"
            f"{table(parameters(cls))}\n"
        )
    return "\n".join(parts)


def _parted(text: str) -> str:
    """Return the docstring of a stage with a paragraph for each of its parts, and with links to papers."""
    parts = "Scored|Kept|Always kept|Nothing is scored|Source|Differs from the authors' code"
    text = re.sub(rf"(?<=[.])\s+(?=(?:{parts})\b)", "\n\n", text)
    text = re.sub(rf"^({parts})\b", r"**\1**", text, flags=re.MULTILINE)
    return _linked(text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def fill_page() -> str:
    """Return a section per fill and per policy."""
    parts = [
        f"# Fills and policies\n\n{NOTE.format('sparsekit/fills.py` and `sparsekit/policies.py')}\n",
        "A fill gives the output of queries that a token stage drops. It stands inside `decompress`:\n"
        "`token_coverage | decompress(fill=sliding_window(128))`. A policy says how a pipeline does its work. Each\n"
        "stands in a pipeline at most once; a pipeline adds those that are not named, with their defaults.\n",
        *map(_section, FILLS),
        *map(_section, POLICIES),
    ]
    return "\n".join(parts)


def preset_page() -> str:
    """Return a section per recipe: what it is for, its spec, its steps."""
    parts = [
        f"# Recipes\n\n{NOTE.format('sparsekit/recipes.py` and `sparsekit/presets.py')}\n",
        "A recipe is a pipeline with a name. The name stands wherever a spec may stand, as in\n"
        '`sparsify(model, "balanced")`. [Accuracy against speed](front.md) says what each keeps and costs, model by\n'
        "model, and what is claimed of it.\n"
        "[How the recipes were chosen](recipes.md) says what else was tried.\n",
    ]
    for name, spec in PRESETS.items():
        steps = "\n".join(f"- `{step}`" for step in str(Pipeline.from_spec(spec)).split(" -> "))
        parts.append(
            f"## {name}\n\n{inspect.getdoc(recipes.PIPELINES[name])}\n\nThe spec:\n\n    {spec}\n\n"
            f"Its steps, with those that a pipeline adds by itself:\n\n{steps}\n"
        )
    parts.append(f"## As published\n\n`sparsekit.recipes.paper(layers)`: {_linked(inspect.getdoc(recipes.paper))}\n")
    return "\n".join(parts)


def command_page() -> str:
    """Return a section per command: what it does, its arguments and options."""
    parts = [
        f"# Commands\n\n{NOTE.format('sparsekit/commands/')}\n",
        "`sparsekit COMMAND --help` prints the same. An error is one line and exit code 2.\n",
    ]
    for command in cli.app.registered_commands:
        name, rows = command.name or command.callback.__name__, list(options(command.callback))
        needed = [shown if shown.isupper() else f"{shown} {kind.split(',')[0].upper()}"
                  for shown, kind, default, _ in rows if default == "required"]  # fmt: skip
        usage = " ".join(["sparsekit", name, *needed, *(["[OPTIONS]"] if len(needed) < len(rows) else [])])
        listed = table(((f"`{shown}`", *rest) for shown, *rest in rows), "argument or option")
        parts.append(f"## sparsekit {name}\n\n{inspect.getdoc(command.callback)}\n\n    {usage}\n\n{listed}\n")
    return "\n".join(parts)


def options(command: Any) -> Iterator[Row]:
    """Yield name, type, default and meaning of each argument and option of a command, as its signature says."""
    for name, given in inspect.signature(command, eval_str=True).parameters.items():
        kind, info = get_args(given.annotation)[:2]
        words = [
            word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str) and word[:1] == "-"
        ]
        shown = name.upper() if isinstance(info, ArgumentInfo) else " ".join(words) or f"--{name.replace('_', '-')}"
        if given.default is inspect.Parameter.empty:
            default = "required"
        else:
            default = "" if given.default is None or given.default is False else f"{given.default}"
        yield shown, _kind(kind), default, (info.help or "").replace("|", "\\|")


def _kind(hint: Any) -> str:
    """Return a type as a table shows it: without None, which the default says, and one of several as one."""
    if get_origin(hint) is list:
        return f"{_kind(get_args(hint)[0])}, several"
    some = [one for one in get_args(hint) if one is not type(None)]
    if some:
        return " or ".join(map(_kind, some))
    return {str: "text", bool: "flag"}.get(hint, hint.__name__.lower())


def _section(cls: type) -> str:
    text = inspect.getdoc(cls).partition("Args:\n")[0].strip()
    rows = table(parameters(cls))
    return f"## {cls.__name__}\n\n`{snake(cls.__name__)}` in a spec. {text}\n\n{rows or 'It has no parameters.'}\n"


def table(rows: Iterable[tuple[str, ...]], first: str = "parameter") -> str:
    """Return a table of parameters, "" for none."""
    lines = [f"| {name} | {kind} | {default} | {meaning} |" for name, kind, default, meaning in rows]
    return "\n".join([f"| {first} | type | default | meaning |\n|---|---|---|---|", *lines]) if lines else ""


def parameters(cls: type) -> Iterator[Row]:
    """Yield name, type, default and meaning of each field of a stage, a policy or a fill.

    The meanings are those of the class's docstring, of its section Args.
    """
    source, args = inspect.getsource(cls), inspect.getdoc(cls).partition("Args:\n")[2]
    factories = {field.name: field.default_factory() for field in fields(cls) if field.default_factory is not MISSING}
    defaults = factories | {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    for name, meaning in re.findall(r"^    (\w+): (.+)$", args, re.MULTILINE):
        kind = re.search(rf"^    {name}: ([^=\n]+?)(?: = .+)?$", source, re.MULTILINE)[1]
        default = repr(defaults[name]) if name in defaults else ""
        kind = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace(", ", " or "), kind)
        yield f"`{name}`", kind.replace(" | ", " or "), default, meaning


def explored_again() -> str:
    """Return the existing data of docs/explore.html in the current page of sparsekit explore."""
    found = json.loads(re.search(r'id="data">(.*?)</script>', EXPLORED.read_text(encoding="utf-8"), re.DOTALL)[1])
    return explored.page(found, found["model"])


PAGES = {
    DOCS / "stages.md": stage_page,
    DOCS / "fills.md": fill_page,
    DOCS / "presets.md": preset_page,
    DOCS / "commands.md": command_page,
    EXPLORED: explored_again,
}


def main(check: bool) -> None:
    """Write each page, or, to check, exit with the names of pages that differ from the code."""
    old = []
    for file, page in PAGES.items():
        text = page()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            old.append(f"docs/{file.name}")
            if not check:
                file.write_text(text, encoding="utf-8")
    if check and old:
        sys.exit(f"{', '.join(old)}: out of date with the code; run make docs")


if __name__ == "__main__":
    main("--check" in sys.argv)
