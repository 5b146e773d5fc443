"""Tests of the tasks: exact, repeatable, fair prompts on real text, and errors that say what to do."""

import random
import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS

from sparsekit.testbed import CLAIMED, TASKS, TRAINED, read_text
from sparsekit.testbed.sample import ASK, WORD_LETTERS, held_out, keys, words

TEXT = read_text()
LINES = frozenset(TEXT.split(b"\n"))
NAMES = st.sampled_from(sorted(TASKS))
FILLING = "key_value", "common_words", "frequent_words"  # most of a prompt
NEEDLES = sorted(TASKS.keys() - set(FILLING) - {"conversation"})


@settings(max_examples=80)
@given(NAMES, st.integers(1024, 20_000), SEEDS)
def test_a_prompt_has_its_length_and_one_question(name, length, seed):
    sample = TASKS[name](TEXT, length, seed)
    assert sample == TASKS[name](TEXT, length, seed), "the same for the same seed"
    assert sample != TASKS[name](TEXT, length, seed + 1)
    assert len(sample.prompt) == length and sample.task == name
    assert sample.prompt.count(ASK.encode()) == 1, "one question, at the end"


@settings(max_examples=80)
@given(NAMES, st.integers(1024, 20_000), SEEDS)
def test_what_is_scored_stands_in_the_text(name, length, seed):
    sample = TASKS[name](TEXT, length, seed)
    assert list(sample.scored) == sorted(set(sample.scored)) and sample.scored[-1] < len(sample.answer)
    body = sample.prompt.rsplit(ASK.encode(), 1)[0]
    assert sample.values and sum(map(len, sample.values)) == len(sample.scored)
    for value in sample.values:
        assert value == tuple(range(value[0], value[-1] + 1)), "a value is one piece of the answer"
        assert sample.answer[value[0] : value[-1] + 1] in body


@settings(max_examples=40)
@given(st.sampled_from(NEEDLES), st.integers(2048, 8192), SEEDS)
def test_facts_are_whole_lines_of_otherwise_real_text(name, length, seed):
    sample = TASKS[name](TEXT, length, seed)
    lines = sample.prompt.rsplit(ASK.encode(), 1)[0].split(b"\n")
    real = sum(line in LINES for line in lines[1:])
    assert real > len(lines) / 3, "most lines are the text's own"
    if name != "question_answering":  # its question has other words than the text
        question = sample.prompt.rsplit(b"\n", 1)[1]
        first_line = question + sample.answer.split(b"\n")[0]
        assert any(line.startswith(first_line) for line in lines), "the fact asked for is a line of its own"


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_of_a_megabyte(name):
    sample = TASKS[name](TEXT, 2**20, 1)
    assert len(sample.prompt) == 2**20 and sample.values


@given(SEEDS)
def test_evaluation_keys_are_never_training_keys(seed):
    mine = keys(random.Random(seed))
    theirs = keys(random.Random(seed), evaluation=False)
    assert all(held_out(next(mine)) and not held_out(next(theirs)) for _ in range(20))
    made = list(islice(words(random.Random(seed)), 20))
    assert all(held_out(word) and len(word) == WORD_LETTERS for word in made) and len(set(made)) == 20


def test_claims_are_of_tasks_there_are():
    assert set(TRAINED) <= set(CLAIMED) <= set(TASKS) and len(set(CLAIMED)) == len(CLAIMED)


@pytest.mark.parametrize("name", TASKS)
def test_bad_input_is_refused(name):
    with pytest.raises(ValueError, match="length=1023 .* pass 1024 or more"):
        TASKS[name](TEXT, 1023, 0)
    with pytest.raises(ValueError, match="text has .* pass a longer text"):
        TASKS[name](TEXT[:20], 4096, 0)


def test_text_comes_from_a_file_or_is_refused(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"a line of text\n" * 100)
    assert read_text(file) == file.read_bytes()
    file.write_bytes(b"short\n")
    with pytest.raises(ValueError, match="holds 6 bytes; at least 1024"):
        read_text(file)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_text(missing)


def test_importing_the_testbed_imports_no_transformers():
    code = "import sys, sparsekit.testbed; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
