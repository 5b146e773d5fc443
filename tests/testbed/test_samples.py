"""The tasks: exact, repeatable, honest prompts on real text, and refusals that say what to do."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS

from sparsekit.testbed import TASKS, read_text
from sparsekit.testbed.sample import held_out, keys

TEXT = read_text()
NAMES = st.sampled_from(sorted(TASKS))


@settings(max_examples=40)
@given(NAMES, st.integers(1024, 20_000), SEEDS)
def test_a_prompt_has_its_length_one_question_and_the_answer_in_it(name, length, seed):
    sample = TASKS[name](TEXT, length, seed)
    assert sample == TASKS[name](TEXT, length, seed), "the same for the same seed"
    assert len(sample.prompt) == length and sample.task == name
    assert sample.prompt.count(b"# Recall:") == 1, "one question, at the end"
    digits = bytes(sample.answer[i] for i in sample.scored)
    assert digits.isdigit() and len(digits) % 5 == 0
    body = sample.prompt.rsplit(b"\n# Recall:\n", 1)[0]
    for i in range(0, len(digits), 5):
        assert digits[i : i + 5] in body, "what is asked stands in the text"


@settings(max_examples=20)
@given(NAMES, st.integers(2048, 8192), SEEDS)
def test_facts_are_whole_lines_of_otherwise_real_text(name, length, seed):
    sample = TASKS[name](TEXT, length, seed)
    lines = sample.prompt.rsplit(b"\n# Recall:\n", 1)[0].split(b"\n")
    real = sum(line in TEXT for line in lines[1:])
    assert real > len(lines) / 3, "most lines are the text's own"
    question = sample.prompt.rsplit(b"\n", 1)[1]
    first_line = question + sample.answer.split(b"\n")[0]
    assert any(line.startswith(first_line) for line in lines), "the fact asked for is a line of its own"


@given(SEEDS)
def test_evaluation_keys_are_never_training_keys(seed):
    mine = keys(random.Random(seed))
    theirs = keys(random.Random(seed), evaluation=False)
    assert all(held_out(next(mine)) and not held_out(next(theirs)) for _ in range(20))


@pytest.mark.parametrize("name", TASKS)
def test_bad_input_is_refused(name):
    with pytest.raises(ValueError, match="length=1023 .* pass 1024 or more"):
        TASKS[name](TEXT, 1023, 0)
    with pytest.raises(ValueError, match="text has .* pass a longer text"):
        TASKS[name](TEXT[:2000], 4096, 0)


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
