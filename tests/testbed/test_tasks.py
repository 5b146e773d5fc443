"""Tests that each question has one answer, which independent code computes from the prompt."""

import json
import re
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import SEEDS

from sparsekit.testbed import TASKS, read_text
from sparsekit.testbed.sample import ASK, held_out
from sparsekit.testbed.tasks.number_string import LONGEST

TEXT = read_text()
LENGTHS = st.integers(1024, 16_384)


def drawn(name, length, seed):
    """Return a sample's answer, its text, its question, and the values of the answer."""
    sample = TASKS[name](TEXT, length, seed)
    body, question = sample.prompt.decode("latin-1").rsplit(ASK, 1)
    answer = sample.answer.decode()
    return answer, body, question, [answer[value[0] : value[-1] + 1] for value in sample.values]


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_multi_query_asks_for_four_keys_each_once_in_the_text(length, seed):
    answer, body, question, values = drawn("multi_query", length, seed)
    names, start = question.split("\n")
    named = names.removeprefix("# ").split(", ")
    lines = (start + answer).split("\n")
    assert len(set(named)) == len(lines) == len(values) == 4
    lines[-1] += lines[0].removeprefix(start).lstrip("0123456789")  # the answer ends with its last value
    for key, line, value in zip(named, lines, values, strict=True):
        assert held_out(key) and key in line and re.fullmatch(r"\d{5}", value) and value in line
        assert len(re.findall(rf"\b{key}", body)) == 1 and body.count(line) == 1
    shape = re.escape(start).replace(named[0], "[a-z]{5}") + r"\d{5}"
    assert len(re.findall(shape, body)) >= 4 + 4, "others compete in the same wording"


def test_multi_query_names_keys_in_another_order_than_the_texts():
    differs = 0
    for seed in range(10):
        _, body, question, _ = drawn("multi_query", 4096, seed)
        places = [body.index(key) for key in question.split("\n")[0].removeprefix("# ").split(", ")]
        differs += places != sorted(places)
    assert differs >= 7  # one of the 24 orders is that of the text


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_key_value_is_json_that_holds_the_answer(length, seed):
    answer, body, question, values = drawn("key_value", length, seed)
    held = json.loads(re.search(r'\{\n(    "[a-z-]+": "[0-9a-f-]+",?\n)+\}', body)[0])
    key = re.fullmatch(r'    "(.*)": "', question)[1]
    assert held[key] == answer and values == [answer]
    assert all(map(held_out, key.split("-"))) and body.count(key) == 1
    assert len(set(held.values())) == len(held) and len(json.dumps(held, indent=4)) > 0.8 * length


def test_key_value_asks_for_keys_all_over_the_object():
    places = []
    for seed in range(20):
        _, body, question, _ = drawn("key_value", 4096, seed)
        places.append(body.index(question) / len(body))
    assert min(places) < 0.25 and max(places) > 0.75 and len(set(places)) > 15


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_number_string_is_the_only_one_and_comes_in_runs(length, seed):
    answer, body, question, values = drawn("number_string", length, seed)
    assert re.findall(re.escape(question) + r"(\d+)", body) == [answer] == values
    runs = [len(run[0]) for run in re.finditer(r"(\d)\1*", answer)]
    assert len(answer) == 10 and max(runs) <= LONGEST and len(runs) <= 10


def test_number_strings_repeat_digits():
    answers = [TASKS["number_string"](TEXT, 1024, seed).answer for seed in range(30)]
    assert len(set(answers)) == 30
    assert sum(any(a == b for a, b in zip(one, one[1:], strict=False)) for one in answers) >= 25


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_copy_span_goes_on_with_a_line_seen_once(length, seed):
    answer, body, question, values = drawn("copy_span", length, seed)
    given_words, rest = question.split()[-2:], answer.split()
    assert body.count(question + answer) == 1 and values == rest and len(set(given_words + rest)) == 16
    assert all(body.count(word) == 1 for word in (*given_words, *rest)), "nothing else tells what comes next"


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
@example(9405, 0)  # the last row holds one word
def test_common_words_are_the_ten_most_common(length, seed):
    answer, body, question, values = drawn("common_words", length, seed)
    listed = re.findall(r"^((?:\d+\. [a-z]{6} ?)+)$", body, re.MULTILINE)
    items = re.findall(r"(\d+)\. ([a-z]{6})", " ".join(listed))
    assert [int(number) for number, _ in items[:-1]] == list(range(1, len(items))), "numbered through"
    ranked = Counter(word for _, word in items).most_common()
    assert values == sorted(word for word, _ in ranked[:10])
    assert ranked[9][1] == ranked[0][1] > ranked[10][1], "ten, and no tie with the next"
    assert (question + answer).split("\n")[1:] == [f"{i}. {word}" for i, word in enumerate(values, 1)]


@settings(max_examples=30)
@given(LENGTHS, SEEDS)
def test_frequent_words_are_the_three_most_frequent_in_order(length, seed):
    answer, body, question, values = drawn("frequent_words", length, seed)
    rows = re.findall(r"^(?:(?:[a-z]{6}|\.{6}) ?)+$", body, re.MULTILINE)
    ranked = Counter(" ".join(row for row in rows if "......" in row).split()).most_common()
    (noise, most), *words = ranked
    assert noise == "......" and [word for word, _ in words[:3]] == values
    counts = [most, *(count for _, count in words[:4])]
    assert all(a > b for a, b in zip(counts, counts[1:], strict=False)), "no ties"
    assert (question + answer).split("\n")[1:] == [f"{i}. {word}" for i, word in enumerate(values, 1)]


# In the order name, town, year, teacher.
PEOPLE = (
    (r"# (\w+), a \w+ from (\w+), was born in (\d+) and learned from (\w+)\.", (1, 2, 3, 4)),
    (r"# Born in (\d+), (\w+) lived in (\w+) and worked as a \w+, taught by (\w+)\.", (2, 3, 1, 4)),
    (r"# In (\w+) there was a \w+ called (\w+), born in (\d+), who had (\w+) as a teacher\.", (2, 1, 3, 4)),
)


def answered(seed, length):
    """Return the kind of question, and its answer, computed from the text alone."""
    answer, body, question, values = drawn("question_answering", length, seed)
    people, said = {}, {}
    for pattern, order in PEOPLE:
        for found in re.finditer(rf"^{pattern}$", body, re.MULTILINE):
            name, *facts = (found[i] for i in order)
            people[name], said[name] = facts, found[0]
    assert len(people) == max(4, min(64, length // 1024)), "everybody is found, once"
    asked, start = question.split("\n")
    name = next(name for name in people if name in asked)
    town, year, teacher = people[name]
    assert not {town for town, *_ in people.values()} & set(people), "a town is no person"
    assert name in start and answer == f" {values[0]}" and len(values) == 1
    if "teacher" in asked:
        assert people[teacher][1] not in said[name], "it takes two lines"
        return "teacher", values[0], people[teacher][1]
    return ("town", values[0], town) if "town" in asked else ("year", values[0], year)


@settings(max_examples=40)
@given(LENGTHS, SEEDS)
def test_question_answering_follows_from_the_text(length, seed):
    _, given_answer, right = answered(seed, length)
    assert given_answer == right


def test_question_answering_asks_for_years_towns_and_teachers():
    assert {answered(seed, 2048)[0] for seed in range(20)} == {"year", "town", "teacher"}
