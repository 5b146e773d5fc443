"""Cases in words, for any tokenizer: a task's question about real text becomes a prompt of so many tokens and a reply.

The prompt is what a user would send: the tokenizer's chat template around the document and the question, and without a
template plain text. Prompt and reply together have the length asked for, or as much less as whole lines of the document
make it, so that nothing lies beyond a model's positions.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random
from typing import Any

import numpy as np

from ..checks import check_choice, check_count
from .case import Case, Passage, identity
from .question import Question
from .tasks import TASKS

AFTER = 512  # tokens of a passage's following text
PIECE = 200  # letters: longer lines are cut, at a space where there is one
LETTERS = 4  # of a token, a first guess at how much text is needed
TRIES = 6  # at the number of lines that fit best
# The day, which some templates would fill in, and no thoughts before the reply; other templates ignore both.
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
BEFORE = "Before you answer, here is some more text."
NOW = "Now answer the question that I asked before this text."
REPLY = "Answer:\n"  # where there is no template, what leads to the reply


@dataclass(frozen=True)
class _Pieces:
    """Lines of text, each with its end, and about how many tokens each has."""

    texts: Sequence[str]
    tokens: Sequence[int]

    def fitting(self, tokens: int) -> int:
        """Return how many of the first lines have at most so many tokens together."""
        return int(np.searchsorted(np.cumsum(self.tokens), tokens, side="right"))

    def after(self, n: int) -> "_Pieces":
        """Return those after the first n."""
        return _Pieces(self.texts[n:], self.tokens[n:])


class Words:
    """The source of cases in words. Lengths are in tokens. Raises ValueError for a tokenizer that is not a fast one."""

    unit = "tokens"

    def __init__(self, tokenizer: Any, text: bytes, following: int = AFTER) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer: got {type(tokenizer).__name__}, which does not say where its tokens begin; allowed are "
                "the fast ones of transformers: convert it to one"
            )
        check_count("following", following, 1)
        self._tokenizer, self._following = tokenizer, following
        self._pieces = list(_cut(text.decode(errors="replace")))
        self._ends = list(accumulate(map(len, self._pieces)))
        named = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = sorted(named.union(filter(None, tokenizer.all_special_tokens)), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._first = _added_first(tokenizer)
        self._identity = f"{identity(text)}, questions {_fingerprint()}"

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Return the tasks; a claim may rest on all, of each model on those that it can do."""
        return {"all": tuple(TASKS), "claimed": tuple(TASKS)}

    @property
    def identity(self) -> str:
        """Return what tells the text and the questions apart from others."""
        return self._identity

    def case(self, task: str, seed: int, length: int) -> Case:
        """Return the case of a prompt of at most `length` tokens; the same for the same arguments."""
        check_choice("tasks", task, tuple(TASKS))
        rng = _generator(task, length, seed)
        question = TASKS[task](rng)
        words = "".join(piece for piece, _ in question.reply)
        found = self._encode(words, add_special_tokens=False, return_offsets_mapping=True)
        reply = tuple(found["input_ids"])
        prompt = self._prompt(question, rng, task, length, len(reply))
        return Case(task, seed, length, prompt, reply, _places(question, found["offset_mapping"]))

    def passage(self, seed: int, length: int) -> Passage:
        """Return `length` tokens of the text, the last of which follow the others; the same for the same arguments."""
        check_count("lengths", length, 2)
        window = "".join(self._window(_generator("passage", length, seed), length).texts)
        ids = (*self._first, *self._ids(window))[:length]
        split = length - min(self._following, length // 2)
        return Passage(seed, length, ids[:split], ids[split:])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text."""
        return self._tokenizer.decode(list(tokens))

    def _prompt(self, question: Question, rng: Random, task: str, length: int, replied: int) -> tuple[int, ...]:
        """Return the tokens of a prompt whose document is as long as fits with a reply of so many tokens."""
        pieces, further = self._document(question, rng, length), ""
        if question.further:
            n = pieces.fitting(question.further)
            further = "".join(pieces.texts[:n])
            pieces = pieces.after(n)
        depths = [(i + rng.random()) / len(question.facts) for i in range(len(question.facts))]

        def written(n: int) -> tuple[int, ...]:
            document = _hidden(pieces.texts[:n], question.facts, depths)
            return self._ids_of_prompt(question, document, further)

        empty = len(written(0))
        if pieces.fitting(length - replied - empty) >= question.least:
            n, prompt = _longest(pieces, written, length - replied, empty)
            if n >= question.least:
                return prompt
        least = 2 * (empty + replied)
        raise ValueError(
            f"lengths: got {length:,} tokens, and {task} takes {empty + replied:,} without a text around; allowed are "
            f"lengths with room for one: pass {least:,} or more, or leave the task out"
        )

    def _ids_of_prompt(self, question: Question, document: str, further: str) -> tuple[int, ...]:
        parts = [question.intro, document, question.asked, *([BEFORE, further, NOW] if further else [])]
        content = "\n\n".join(part.strip("\n") for part in parts if part)
        if self._tokenizer.chat_template is None:
            return (*self._first, *self._ids(f"{content}\n\n{REPLY}"))
        message = [{"role": "user", "content": content}]
        written = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **TEMPLATE)
        return tuple(self._ids(written))

    def _document(self, question: Question, rng: Random, length: int) -> _Pieces:
        """Return more lines than fit: the question's own rows, or a window of the text."""
        if question.rows is None:
            return self._window(rng, length)
        rows = iter(question.rows)
        texts: list[str] = []
        while True:
            texts += [f"{row}\n" for row in islice(rows, max(16, length // 8, len(texts)))]
            pieces = self._counted(texts)
            if sum(pieces.tokens) >= length:
                return pieces

    def _window(self, rng: Random, tokens: int) -> _Pieces:
        """Return lines of the text from a random one on, with at least so many tokens."""
        size, letters = self._ends[-1], LETTERS * tokens
        while True:
            begin = bisect_left(self._ends, rng.randrange(max(1, size - letters)))
            end = bisect_left(self._ends, (self._ends[begin - 1] if begin else 0) + letters) + 1
            texts = self._pieces[begin:end]
            if self._special:  # as text they would be read as what they are for
                texts = [text for text in texts if not self._special.search(text)]
            pieces = self._counted(texts)
            if (found := sum(pieces.tokens)) >= tokens:
                return pieces
            if letters >= size:
                raise ValueError(
                    f"file: got a text of {found:,} tokens; allowed are {tokens:,} or more for this length: pass a "
                    "longer one, or a shorter length"
                )
            letters *= 2

    def _counted(self, texts: Sequence[str]) -> _Pieces:
        """Return lines with the number of tokens that begin in each, as they are read together."""
        pairs = self._encode("".join(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = np.cumsum([len(text) for text in texts])
        line = np.searchsorted(ends, np.array([start for start, _ in pairs], dtype=int), side="right")
        return _Pieces(texts, np.bincount(line, minlength=len(texts))[: len(texts)].tolist())

    def _ids(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False)["input_ids"]

    def _encode(self, text: str, **how: Any) -> Any:
        return self._tokenizer(text, verbose=False, **how)


def _longest(
    pieces: _Pieces, written: Callable[[int], tuple[int, ...]], most: int, empty: int
) -> tuple[int, tuple[int, ...]]:
    """Return for how many of the first lines a prompt has at most so many tokens, and that prompt.

    Lines are counted beside their neighbours in the text, and facts stand between them: that is a few tokens off.
    """
    n = pieces.fitting(most - empty)
    best: tuple[int, tuple[int, ...]] = (0, ())
    for _ in range(TRIES):
        prompt = written(n)
        if (left := most - len(prompt)) >= 0:
            best = max(best, (n, prompt))
            if not (more := pieces.after(n).fitting(left)):
                break
            n += more
        else:
            n -= 1 + int(np.searchsorted(np.cumsum(pieces.tokens[:n][::-1]), -left))
            if n <= best[0]:
                break
    return best


def _generator(what: str, length: int, seed: int) -> Random:
    """Return a generator of its own for each of these."""
    return Random(f"{what}, {length}, {seed}")


def _cut(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, long ones in pieces."""
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text):
        while len(line) > PIECE:
            at = line.rfind(" ", PIECE // 2, PIECE) + 1 or PIECE
            yield line[:at]
            line = line[at:]
        yield line


def _hidden(texts: Sequence[str], facts: Sequence[str], depths: Sequence[float]) -> str:
    """Return lines with each fact after the part of them that its depth says; depths ascend."""
    found: list[str] = []
    done = 0
    for fact, depth in zip(facts, depths, strict=True):
        at = int(depth * (len(texts) + 1))
        found += texts[done:at]
        inside = bool(found) and not found[-1].endswith("\n")  # of a long line
        found += ["\n" * inside, f"{fact}\n"]
        done = at
    return "".join([*found, *texts[done:]])


def _places(question: Question, offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each value of a reply: all that have a letter of it."""
    found, at = [], 0
    for piece, counts in question.reply:
        end = at + len(piece)
        if counts:
            found.append(tuple(i for i, (start, stop) in enumerate(offsets) if start < end and stop > at))
        at = end
    return tuple(found)


def _added_first(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return next(tuple(whole[:at]) for at in range(len(whole)) if whole[at : at + len(bare)] == bare)


def _fingerprint() -> str:
    """Return a hash of how every task asks: records of other wordings are of other questions."""
    digest = hashlib.sha256()
    for name, task in TASKS.items():
        for seed in range(4):  # several wordings
            asked = task(Random(seed))
            rows = list(islice(asked.rows, 2)) if asked.rows is not None else []
            digest.update(repr((name, asked.intro, asked.asked, asked.reply, asked.facts, rows)).encode())
    digest.update(repr((BEFORE, NOW, REPLY)).encode())
    return digest.hexdigest()[:8]
