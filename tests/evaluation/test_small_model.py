"""Tests of `small_model`: it needs no network, commands take its folder, and they ask it a new task."""

import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsekit.cli import main
from sparsekit.evaluation.records import Records
from sparsekit.evaluation.tasks import TASKS
from sparsekit.testing import small_model

PAGE = Path(__file__).parents[2] / "docs" / "add_a_task.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "made")


def test_the_task_of_the_page_is_asked(folder, tmp_path, monkeypatch, capsys):
    """Run the code and the command of docs/add_a_task.md; a monkeypatch replaces the line in TASKS."""
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
    monkeypatch.setitem(TASKS, "code_of_the_door", names["code_of_the_door"])
    line = next(
        line for line in PAGE.read_text().splitlines() if line.startswith("    sparsekit eval /tmp/small_model ")
    )
    words = line.replace("/tmp/small_model", str(folder)).split() + [
        "--pipelines",
        "streaming",
        "--timed",
        "0",
        "--out",
    ]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "records.jsonl")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    asked = [x for x in Records(tmp_path / "records.jsonl").lines if x.get("task") == "code_of_the_door"]
    assert {x["pipeline"] for x in asked} >= {"dense", "streaming"} and {x["length"] for x in asked} == {1024}


def test_it_is_the_same_each_time_and_leaves_the_random_numbers_alone(folder, tmp_path):
    before = torch.random.get_rng_state()
    again, other = small_model(tmp_path / "again"), small_model(tmp_path / "other", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    read = lambda path, name: (path / name).read_bytes()  # noqa: E731
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert read(folder, name) == read(again, name)
    assert read(other, "model.safetensors") != read(folder, "model.safetensors")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2e6


@settings(max_examples=50)
@given(text=st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=60))
def test_its_tokens_are_of_any_text_and_the_model_knows_each(folder, text):
    tokenizer, model = loaded(folder)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and all(0 <= i < model.config.vocab_size for i in ids)
    talk = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    assert talk == f"<|user|>\n{text}<|end|>\n"


KEPT: dict = {}


def loaded(folder):
    if folder not in KEPT:
        KEPT[folder] = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    return KEPT[folder]
