"""Tests of the README: its order, its links, and its snippets, which must print the output it shows."""

import re
import shutil
from pathlib import Path

import pytest
from tiny_llama import byte_tokenizer

from sparsekit.testbed import MODEL_PATH

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ORDER = [
    "Install",
    "Eight lines",
    "Accuracy and speed on real models",
    "The demo on a CPU",
    "Where it does not pay",
    "Links",
]
SNIPPET = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PUBLIC, *OTHERS = SNIPPET.findall(README)
NAME = '"Qwen/Qwen2.5-Coder-0.5B-Instruct"'
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def printed(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_headings_stand_in_their_order():
    assert README.startswith("# sparsekit\n") and re.findall("^## (.*)", README, re.MULTILINE) == ORDER


def test_the_first_snippet_is_eight_lines_on_a_public_model():
    code, said = PUBLIC
    assert len([line for line in code.splitlines() if line]) == 8
    assert code.count(NAME) == 2 and said


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_a_snippet_prints_what_stands_below_it(number, capsys):
    code, said = OTHERS[number]
    assert said and printed(code, capsys) == said


def test_the_lines_on_a_public_model_print_what_they_do_on_any_other(tmp_path, monkeypatch, capsys):
    """The test has no hub: the embedded model replaces the public one, so the numbers differ."""
    code, said = PUBLIC
    shutil.copytree(MODEL_PATH, tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text("\n".join(f"row_{i} = table[{i}] * {i * i % 97}" for i in range(160)))
    found = FIGURE.sub("0", printed(code.replace(NAME, '"model"'), capsys)).splitlines()
    said = FIGURE.sub("0", said.replace("Qwen2ForCausalLM", "LlamaForCausalLM")).splitlines()
    assert "ran dense" in said.pop() and found[: len(said)] == said, "its last line is of that model's layers"


def test_its_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) > 15 and not [link for link in links if not (ROOT / link).exists()]
