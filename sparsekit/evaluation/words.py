"""Makes cases in words for any tokenizer: of a task's question about real text, a prompt of given length and a reply.

The prompt is what a user would send: the document and the question in the tokenizer's chat template, or as plain text
if there is none. Prompt and reply together have at most the requested length, so that nothing lies beyond a model's
positions; they may be a little shorter, because the document consists of whole lines.
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
PIECE = 200  # letters: longer lines are cut, at a space if there is one
LETTERS = 4  # letters of a token, for a first guess at how much text is needed
TRIES = 6  # attempts to find the number of lines that fit
# A fixed date, because some templates insert today's, and no thinking before the reply; other templates ignore both.
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
BEFORE = "Before you answer, here is some more text."
NOW = "Now answer the question that I asked before this text."
REPLY = "Answer:\n"  # stands before the reply if there is no template


@dataclass(frozen=True)
class _Pieces:
    """Lines of text with their ends, and the approximate number of tokens of each."""

    texts: Sequence[str]
    tokens: Sequence[int]

    def fitting(self, tokens: int) -> int:
        """Return the largest number of first lines that have at most `tokens` tokens together."""
        return int(np.searchsorted(np.cumsum(self.tokens), tokens, side="right"))

    def after(self, n: int) -> "_Pieces":
        """Return the lines after the first n."""
        return _Pieces(self.texts[n:], self.tokens[n:])


class Words:
    """The source of cases in words. Lengths are in tokens. Raises ValueError for a tokenizer that is not fast."""

    unit = "tokens"

    def __init__(self, tokenizer: Any, text: bytes, following: int = AFTER) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer: got {type(tokenizer).__name__}, which does not say where its tokens begin; allowed are "
                "transformers' fast tokenizers: convert it to one"
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
        """The tasks by group; a claim may rest on all of them, for each model on those that it can do."""
        return {"all": tuple(TASKS), "claimed": tuple(TASKS)}

    @property
    def identity(self) -> str:
        """A text that identifies the source's text and the wording of its questions."""
        return self._identity

    def case(self, task: str, seed: int, length: int) -> Case:
        """Return the case of a prompt of at most `length` tokens; the same for the same arguments."""
        check_choice("tasks", task, tuple(TASKS))
        rng = _generator(task, length, seed)
        question = TASKS[task](rng)
        words = "".join(piece for piece, _ in question.reply)
        encoded = self._encode(words, add_special_tokens=False, return_offsets_mapping=True)
        reply = tuple(encoded["input_ids"])
        prompt = self._prompt(question, rng, task, length, len(reply))
        return Case(task, seed, length, prompt, reply, _places(question, encoded["offset_mapping"]))

    def passage(self, seed: int, length: int) -> Passage:
        """Return `length` tokens of the text, split into a prompt and what follows; the same for the same arguments."""
        check_count("lengths", length, 2)
        window = "".join(self._window(_generator("passage", length, seed), length).texts)
        ids = (*self._first, *self._ids(window))[:length]
        split = length - min(self._following, length // 2)
        return Passage(seed, length, ids[:split], ids[split:])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text."""
        return self._tokenizer.decode(list(tokens))

    def _prompt(self, question: Question, rng: Random, task: str, length: int, replied: int) -> tuple[int, ...]:
        """Return the tokens of a prompt whose document is as long as fits beside a reply of `replied` tokens."""
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
            f"lengths: got {length:,} tokens, and {task} takes {empty + replied:,} without any document; allowed are "
            f"lengths with room for a document: pass {least:,} or more, or leave the task out"
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
        """Return more lines than fit: the question's own rows, or a random part of the text."""
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
        """Return lines of the text from a random line on, with at least `tokens` tokens."""
        size, letters = self._ends[-1], LETTERS * tokens
        while True:
            begin = bisect_left(self._ends, rng.randrange(max(1, size - letters)))
            end = bisect_left(self._ends, (self._ends[begin - 1] if begin else 0) + letters) + 1
            texts = self._pieces[begin:end]
            if self._special:  # a special token in the text would act as one
                texts = [text for text in texts if not self._special.search(text)]
            pieces = self._counted(texts)
            if (held := sum(pieces.tokens)) >= tokens:
                return pieces
            if letters >= size:
                raise ValueError(
                    f"file: got a text of {held:,} tokens; allowed are {tokens:,} or more for this length: pass a "
                    "longer text, or a shorter length"
                )
            letters *= 2

    def _counted(self, texts: Sequence[str]) -> _Pieces:
        """Return lines with the number of tokens that begin in each when all are tokenized together."""
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
    """Return the largest number of first lines for which a prompt has at most `most` tokens, and that prompt.

    The counts of lines are a few tokens off, because facts will stand between them; so a few numbers are tried.
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
    """Return a random number generator that depends on all three arguments."""
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
    """Return the lines as one text with each fact inserted at its depth, in [0, 1]; depths ascend."""
    parts: list[str] = []
    done = 0
    for fact, depth in zip(facts, depths, strict=True):
        at = int(depth * (len(texts) + 1))
        parts += texts[done:at]
        inside = bool(parts) and not parts[-1].endswith("\n")  # in the middle of a long line
        parts += ["\n" * inside, f"{fact}\n"]
        done = at
    return "".join([*parts, *texts[done:]])


def _places(question: Question, offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the places of each value's tokens in a reply: all tokens that share a letter with the value."""
    places, at = [], 0
    for piece, counts in question.reply:
        end = at + len(piece)
        if counts:
            places.append(tuple(i for i, (start, stop) in enumerate(offsets) if start < end and stop > at))
        at = end
    return tuple(places)


def _added_first(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return next(tuple(whole[:at]) for at in range(len(whole)) if whole[at : at + len(bare)] == bare)


def _fingerprint() -> str:
    """Return a hash of the wording of every task: records with another wording are not compared."""
    digest = hashlib.sha256()
    for name, task in TASKS.items():
        for seed in range(4):  # several wordings
            question = task(Random(seed))
            rows = list(islice(question.rows, 2)) if question.rows is not None else []
            digest.update(repr((name, question.intro, question.asked, question.reply, question.facts, rows)).encode())
    digest.update(repr((BEFORE, NOW, REPLY)).encode())
    return digest.hexdigest()[:8]
