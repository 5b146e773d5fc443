"""Tests of the embedded model's training prompts: real text with facts, questions about them and the answers."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS

from bench.model.prompts import ALL, NEEDLES, training_prompt
from sparsekit.testbed import TASKS, TRAINED, read_text
from sparsekit.testbed.sample import ASK, WORD_LETTERS, held_out

TEXT = read_text()
LENGTHS = st.integers(1024, 16_384)


def parts(prompt, marks):
    """Return a prompt's text, and its questions with their answers, which are the marked bytes."""
    body, *tail = prompt.split(ASK.encode())
    assert not any(marks[: len(body)])
    asked, at = [], len(body)
    for piece in tail:
        at += len(ASK)
        marked = marks[at : at + len(piece)]
        start, end = marked.index(1), len(marked.rstrip(b"\0"))
        assert set(marked[start:end]) == {1} and end == len(piece) - 1 and piece.endswith(b"\n")
        asked.append((piece[:start], piece[start:end]))
        at += len(piece)
    return body, asked


@settings(max_examples=60)
@given(LENGTHS, SEEDS, st.sampled_from([NEEDLES, TRAINED, ALL]))
def test_a_prompt_has_its_length_and_asks_for_what_stands_in_it(length, seed, tasks):
    prompt, marks = training_prompt(TEXT, length, Random(seed), tasks)
    assert (prompt, marks) == training_prompt(TEXT, length, Random(seed), tasks)
    assert len(prompt) == len(marks) == length and set(marks) == {0, 1}
    body, asked = parts(prompt, marks)
    assert asked and body.count(b"\n") > 3
    for _, answer in asked:
        for value in re.findall(rb"\d{5,}|[0-9a-f]{5}(?:-[0-9a-f]{5}){2}|\b[a-z]{6}\b", answer):
            assert value in body


@settings(max_examples=60)
@given(LENGTHS, SEEDS)
def test_its_keys_and_words_are_never_those_of_evaluation(length, seed):
    body, asked = parts(*training_prompt(TEXT, length, Random(seed), ALL))
    for question, answer in asked:
        whole = (question + answer).decode()
        keys = [group for key in re.findall(r"\b[a-z]{5}(?:-[a-z]{5}){2}\b", whole) for group in key.split("-")]
        made = re.findall(r"\b(?:[bcdfghjklmnpqrstvwxz][aeiou]){3}\b", answer.decode())
        assert not any(map(held_out, keys)) and not any(len(word) == WORD_LETTERS and held_out(word) for word in made)


def test_a_prompt_is_of_the_tasks_that_are_trained():
    of = lambda tasks: b"".join(training_prompt(TEXT, 4096, Random(seed), tasks)[0] for seed in range(60))  # noqa: E731
    signs = {
        "key_value": rb'"[a-z]{5}-[a-z]{5}-[a-z]{5}": "',
        "number_string": rb"sequence of digits",
        "copy_span": rb"\n(?:# )?(?:[a-z]{6} ){4}",
        "common_words": rb"most common words of the list",
        "frequent_words": rb"most frequent words",
        "question_answering": rb"# Question: ",
    }
    needles, everything = of(NEEDLES), of(ALL)
    for task, sign in signs.items():
        assert re.search(sign, everything), task
        assert not re.search(sign, needles), task


def test_what_the_model_is_said_to_be_trained_for_is_trained():
    assert set(TRAINED) <= set(ALL) <= TASKS.keys()


@pytest.mark.parametrize("length", [1024, 131_072])
def test_prompts_of_any_length_are_mostly_made(length):
    for seed in range(30):
        prompt, marks = training_prompt(TEXT, length, Random(seed), ALL)
        assert len(prompt) == length and sum(marks) >= 5
