"""Tests of cases in words for any tokenizer: the prompt, the values that count, and that each question is fair."""

import re
from collections import Counter
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS
from tiny_llama import byte_tokenizer
from transformers import AutoTokenizer

from sparsekit.evaluation import vocabulary
from sparsekit.evaluation.tasks import TASKS
from sparsekit.evaluation.words import PIECE, Words
from sparsekit.testbed import read_text
from sparsekit.testing.small_model import word_tokenizer

TEXT = read_text()[:1_000_000]
KINDS = ("bytes", "plain", "chat")
LENGTHS = (4096, 8192)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Return tokenizers that were saved to disk and loaded, as a user's are."""
    made = {"bytes": byte_tokenizer(), "plain": word_tokenizer(chat=False), "chat": word_tokenizer()}
    for kind, tokenizer in made.items():
        path = tmp_path_factory.mktemp(kind)
        tokenizer.save_pretrained(path)
        made[kind] = AutoTokenizer.from_pretrained(path)
    assert made["chat"].chat_template and made["plain"].chat_template is None
    return made


@pytest.fixture(scope="module")
def sources(tokenizers):
    return {kind: Words(tokenizer, TEXT) for kind, tokenizer in tokenizers.items()}


def asked(task, length, seed):
    """Return the question as text, before it became tokens."""
    return TASKS[task](Random(f"{task}, {length}, {seed}"))


def said(question):
    return "".join(piece for piece, _ in question.reply)


def values(question):
    return [piece for piece, counts in question.reply if counts]


def parts_of(source, case, question):
    """Return the parts of a prompt before the question and after it."""
    text = source.decode(case.prompt)
    assert text.count(question.asked) == 1
    document, rest = text.split(question.asked)
    return document.split(question.intro)[1] if question.intro else document, rest


EVERYTHING = given(st.sampled_from(sorted(TASKS)), st.sampled_from(KINDS), st.sampled_from(LENGTHS), SEEDS)


@EVERYTHING
@settings(max_examples=120)
def test_a_case_has_its_length_its_words_and_its_values(sources, tokenizers, task, kind, length, seed):
    source, question = sources[kind], asked(task, length, seed)
    case = source.case(task, seed, length)
    assert (case.task, case.seed, case.length, case.inside) == (task, seed, length, 0)
    longest = PIECE + 2 if question.rows is None else max(map(len, islice(question.rows, 500))) + 20
    assert length - longest <= len(case.prompt) + len(case.reply) <= length
    assert source.decode(case.reply) == said(question)
    found = [source.decode([case.reply[at] for at in value]) for value in case.values]
    assert [text.strip() for text in found] == values(question), "whole, and with nothing but a space before"
    assert [at for value in case.values for at in value] == sorted({at for value in case.values for at in value})
    document, rest = parts_of(source, case, question)
    for value in values(question):
        assert value in document and value not in rest
    for fact in question.facts:
        assert len(re.findall(f"^{re.escape(fact)}$", document, re.MULTILINE)) == 1, "once, on lines of its own"
    if kind == "chat":
        assert source.decode(case.prompt).startswith("<|user|>\n") and rest.endswith("<|end|>\n<|assistant|>\n")
    else:
        assert rest.endswith("Answer:\n") and (case.prompt[0] == tokenizers[kind].bos_token_id) == (kind == "plain")


@EVERYTHING
@settings(max_examples=20)
def test_the_same_arguments_give_the_same_case_and_others_another(sources, tokenizers, task, kind, length, seed):
    case = sources[kind].case(task, seed, length)
    assert case == Words(tokenizers[kind], TEXT).case(task, seed, length)
    assert case.prompt != sources[kind].case(task, seed + 1, length).prompt
    assert case.reply != sources[kind].case(task, seed + 1, length).reply


@given(SEEDS)
def test_no_answer_has_a_rival(seed):
    """Keys differ, and the most frequent words are clearly the most frequent, whatever the number of rows."""
    for task in TASKS:
        question = TASKS[task](Random(seed))
        rows = [] if question.rows is None else list(islice(question.rows, 300))
        for n in range(question.least, len(rows), 7) if rows else ():
            if task == "frequent_words":
                (most, count), (_, next_count) = Counter(" ".join(rows[:n]).split()).most_common(2)
                assert [most] == values(question) and count > 2 * next_count
            if task == "common_words":
                for lead, value in zip(question.reply[::2], question.reply[1::2], strict=True):
                    words = Counter(row.split()[-1] for row in rows[:n] if row.startswith(lead[0].strip()))
                    (most, count), (_, next_count) = (words + Counter({"": 1})).most_common(2)
                    assert most == value[0] and count > 2 * next_count
            if task == "many_shot":
                shown = {re.split(r"[ :]+", row)[-1] for row in rows[:n]}
                assert set(values(question)) <= shown
        if question.facts:
            heads = [fact.rsplit(" ", 1)[0] for fact in question.facts if task != "copy_span"]
            assert len(set(heads)) == len(heads), "no key twice"


def test_names_and_words_are_not_part_of_each_other():
    for name in ("CITIES", "PEOPLE", "WORKPLACES", "WORDS"):
        words = getattr(vocabulary, name)
        assert len(set(words)) == len(words)
        assert not [(a, b) for a in words for b in words if a != b and a.lower() in b.lower()], name


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_spread_over_the_document_and_the_question_can_come_before_further_text(sources, kind):
    depths, after = [], []
    for seed in range(12):
        question = asked("needle_questions", 8192, seed)
        document, rest = parts_of(sources[kind], sources[kind].case("needle_questions", seed, 8192), question)
        depths.append([document.index(fact) / len(document) for fact in question.facts])
        assert len(rest) < 60
        question = asked("needle_before", 8192, seed)
        _, rest = parts_of(sources[kind], sources[kind].case("needle_before", seed, 8192), question)
        after.append(len(sources[kind]._ids(rest)))
    for mine in depths:
        assert mine == sorted(mine) and mine[0] < 0.25 and mine[-1] > 0.75
        assert max(b - a for a, b in zip(mine, mine[1:], strict=False)) < 0.4
    assert min(after) > 200 and max(after) < 1300 and any(n > 800 for n in after) and any(n < 500 for n in after)


@pytest.mark.parametrize("kind", KINDS)
def test_a_passage_is_text_and_what_follows_it(sources, kind):
    source = sources[kind]
    for seed, length in ((0, 2048), (1, 4096), (2, 100)):
        passage = source.passage(seed, length)
        assert len(passage.prompt) + len(passage.following) == length
        assert len(passage.following) == min(512, length // 2) and (passage.seed, passage.length) == (seed, length)
        text = source.decode((*passage.prompt, *passage.following)).removeprefix("<s>")
        assert text.encode() in TEXT and passage == source.passage(seed, length)
    assert source.passage(0, 2048) != source.passage(1, 2048)


def test_lines_of_any_length_are_cut_and_markers_in_a_text_are_not_read_as_markers(tokenizers):
    words = [f"word{i}" for i in range(60_000)]
    for text in (" ".join(words), "x" * 400_000, "\n".join(words), "日本語のテキスト" * 20_000):
        source = Words(tokenizers["chat"], text.encode())
        case, question = source.case("needle_questions", 0, 4096), asked("needle_questions", 4096, 0)
        document, _ = parts_of(source, case, question)
        assert 4096 - PIECE * 3 <= len(case.prompt) + len(case.reply) <= 4096
        assert [document.index(fact) for fact in question.facts] == sorted(document.index(f) for f in question.facts)
        assert document.index(question.facts[0]) < len(document) / 3
        assert document.index(question.facts[-1]) > len(document) * 2 / 3
    for mark in ("<|end|>", "<|user|>"):
        marked = "\n".join(f"{word} {mark}" if i % 3 else word for i, word in enumerate(words))
        source = Words(tokenizers["chat"], marked.encode())
        assert source.decode(source.case("needle_single", 0, 4096).prompt).count(mark) == 1, "the template's own"


def test_questions_of_another_wording_are_told_apart(tokenizers, monkeypatch):
    before = Words(tokenizers["bytes"], TEXT).identity
    assert before == Words(tokenizers["chat"], TEXT).identity != Words(tokenizers["chat"], TEXT[:-1]).identity
    monkeypatch.setattr("sparsekit.evaluation.needles.PHRASINGS", ("The number of {city} is {number}.",))
    assert Words(tokenizers["bytes"], TEXT).identity != before


class Slow:
    is_fast = False


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda source, _: source.case("needle", 0, 4096), "tasks: got 'needle'; allowed are 'needle_single'"),
        (
            lambda source, _: source.case("needle_keys", 0, 300),
            "lengths: got 300 tokens, and needle_keys takes .* pass",
        ),
        (lambda source, _: source.case("many_shot", 0, 400), "lengths: got 400 tokens, and many_shot takes"),
        (
            lambda source, _: source.case("needle_single", 0, 2_000_000),
            "file: got a text of .* tokens; allowed are 2,000,000",
        ),
        (lambda source, _: source.passage(0, 2_000_000), "file: got a text of .* tokens"),
        (lambda source, _: source.passage(0, 1), "lengths: got 1"),
        (lambda _, tokenizer: Words(tokenizer, TEXT, following=0), "following: got 0"),
        (lambda *_: Words(Slow(), TEXT), "tokenizer: got Slow, which does not say where its tokens begin"),
    ],
)
def test_what_cannot_be_asked_is_refused(sources, tokenizers, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(sources["chat"], tokenizers["chat"])
