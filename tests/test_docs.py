"""Tests that generated pages agree with the code."""

import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekit
from sparsekit import cli, dispatch, fills, registry, stages
from sparsekit.evaluation.tasks import TASKS
from sparsekit.policies import POLICIES
from sparsekit.presets import PRESETS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
STAGES = [getattr(stages, name) for name in stages.__all__]
COMMANDS = {command.name or command.callback.__name__: command.callback for command in cli.app.registered_commands}


def of_docs(name):
    """Import a module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cells = of_docs("cells")


def section(page, title):
    """Return the text of a page below a heading, up to the next one of its kind."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {title}"
    return found[1]


def test_what_is_written_from_the_code_is_up_to_date():
    found = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert not found.returncode, f"run python docs/generate.py: {found.stdout}{found.stderr}"


def test_the_results_are_those_of_the_records():
    subprocess.run([sys.executable, "-m", "bench.speed.report", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("page, cls", [("stages.md", cls) for cls in STAGES] + [
    ("fills.md", cls) for cls in (fills.Zeros, fills.SlidingWindow, *POLICIES)
])  # fmt: skip
def test_every_stage_fill_and_policy_is_on_its_page_with_every_field(page, cls):
    text = section(page, cls.__name__)
    assert f"`{registry.snake(cls.__name__)}` in a spec" in text
    for field in fields(cls):
        row = re.search(rf"^\| `{field.name}` \| (.+) \| (.*) \| (.+) \|$", text, re.MULTILINE)
        assert row, f"{cls.__name__}.{field.name} has no row"


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_is_on_its_page_as_a_spec(name):
    assert PRESETS[name] in section("presets.md", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_on_its_page_with_every_option(name):
    text = section("commands.md", f"sparsekit {name}")
    rows = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    assert len(rows) == len(inspect.signature(COMMANDS[name]).parameters)
    said = subprocess.run(
        [sys.executable, "-m", "sparsekit", name, "--help"], capture_output=True, text=True, check=True
    )
    for row in rows:
        for word in row.split():
            assert word.lower() in said.stdout.lower(), f"{name} --help does not know {word}"


def test_every_public_name_is_in_the_api():
    text = (DOCS / "api.md").read_text()
    assert not [name for name in sparsekit.__all__ if not re.search(rf":: (sparsekit\.)?{name}$", text, re.MULTILINE)]


def test_every_extra_task_and_backend_is_explained():
    extras = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.S | re.M
    )[1]
    names = {
        "install.md": re.findall(r"^([\w-]+) =", extras, re.M),
        "evaluation.md": TASKS,
        "terms.md": dispatch.BACKENDS,
    }
    for page, wanted in names.items():
        text = (DOCS / page).read_text()
        assert wanted and not [name for name in wanted if f"`{name}`" not in text], page


def test_every_page_is_in_the_sites_table_of_contents():
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    notebooks = [f"notebooks/{path.stem}" for path in DOCS.glob("notebooks/*.ipynb")]
    assert sorted(listed) == sorted([page.stem for page in PAGES if page.stem != "index"] + notebooks)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_is_there(page):
    """Links must also work for readers of the files in the repository."""
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^()\s]+)\)", text)]
    gone = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_example_of_a_page_is_left_out_of_what_is_run(page):
    """`make docs` runs the examples and fails if one fails; test_readme.py runs those of the README."""
    text = page.read_text()
    assert len(cells.blocks(text)) == len(re.findall(r"```\s*(?:python|py|\{code-cell)|<!-- python", text))
    assert cells.as_notebook(text).count("{code-cell}") == len(cells.blocks(text))
    assert cells.blocks(text) or cells.as_notebook(text) == text


def test_a_hidden_example_is_run_and_not_shown():
    text = "# A\n\n```python\nx = 1\n```\n<!-- python\nx = 2\n-->\n```python\nprint(x)\n```\n"
    assert cells.blocks(text) == ["x = 1\n", "x = 2\n", "print(x)\n"]
    assert cells.as_notebook(text).count(":tags: [remove-cell]\nx = 2\n```") == 1


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="the stand-in for a hub's model is one of transformers")
    folder = cells.small_model(tmp_path_factory.mktemp("model"))
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_the_tokens_of_the_stand_in_are_bytes(stand_in, text):
    ids = stand_in(text)["input_ids"]
    assert ids == list(text.encode()) and stand_in.decode(ids) == text
