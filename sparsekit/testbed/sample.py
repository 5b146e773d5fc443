"""A fact, and a prompt that hides facts in real text and asks for one of them at the end.

Lengths are in bytes. A fact is a few lines of source or prose, or one block of many; its question begins in the same
wording, so that the model goes on with the answer. Lines are inserted at line boundaries, at random depths, in their
own order.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

SHORTEST = 1024
KEY_LETTERS = 5
VALUE_DIGITS = 5
WORD_LETTERS = 6
CONSONANTS = "bcdfghjklmnpqrstvwxz"
VOWELS = "aeiou"
ASK = "\n# Recall:\n"


@dataclass(frozen=True)
class Fact:
    """Lines to hide, in document order, and the question about them.

    `answer` is what must follow `question`; `scored` are the offsets of the bytes in it that count.
    """

    lines: tuple[bytes, ...]
    question: bytes
    answer: bytes
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """`prompt` ends in the question; `answer` must come next; `scored` are the offsets of its bytes that count."""

    task: str
    prompt: bytes
    answer: bytes
    scored: tuple[int, ...]
    inside: bool = False  # the right answer is read with the prompt, and judged byte by byte as it is read

    @property
    def values(self) -> tuple[tuple[int, ...], ...]:
        """The runs of consecutive scored offsets. Each is one value asked for."""
        runs: list[list[int]] = []
        for at in self.scored:
            if runs and at == runs[-1][-1] + 1:
                runs[-1].append(at)
            else:
                runs.append([at])
        return tuple(map(tuple, runs))

    def last(self) -> "Sample":
        """The same read up to its last value, which alone is asked for."""
        at = self.values[-1][0]
        scored = tuple(i - at for i in self.values[-1])
        return Sample(self.task, self.prompt + self.answer[:at], self.answer[at:], scored)


def held_out(key: str) -> bool:
    """Whether a key is kept for evaluation (an eighth of all keys, by hash); training uses the others."""
    return zlib.crc32(key.encode()) % 8 == 0


def keys(rng: Random, *, evaluation: bool = True, lookalikes: float = 0.0) -> Iterator[str]:
    """Endless different keys of one side of the split. `lookalikes`: the share that differ in one letter only."""
    used: list[str] = []
    seen: set[str] = set()
    while True:
        if used and rng.random() < lookalikes:
            old, at = rng.choice(used), rng.randrange(KEY_LETTERS)
            key = old[:at] + rng.choice(ascii_lowercase) + old[at + 1 :]
        else:
            key = "".join(rng.choice(ascii_lowercase) for _ in range(KEY_LETTERS))
        if key not in seen and held_out(key) == evaluation:
            used.append(key)
            seen.add(key)
            yield key


def words(rng: Random, *, evaluation: bool = True) -> Iterator[str]:
    """Different pronounceable words of WORD_LETTERS letters, of one side of the split: one million on both."""
    seen: set[str] = set()
    while True:
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(WORD_LETTERS // 2))
        if word not in seen and held_out(word) == evaluation:
            seen.add(word)
            yield word


def value(rng: Random) -> str:
    return str(rng.randrange(10 ** (VALUE_DIGITS - 1), 10**VALUE_DIGITS))


def fact(lines: Sequence[str], question: str, answer: Sequence[tuple[str, bool]]) -> Fact:
    """A Fact from text; the answer comes in pieces, each with whether its bytes count."""
    scored: list[int] = []
    at = 0
    for piece, counts in answer:
        if counts:
            scored.extend(range(at, at + len(piece)))
        at += len(piece)
    whole = "".join(piece for piece, _ in answer)
    return Fact(
        tuple(f"{line}\n".encode() for line in lines),
        (ASK + question).encode(),
        whole.encode(),
        tuple(scored),
    )


def cut(text: bytes, size: int, rng: Random) -> bytes:
    """`size` contiguous bytes of `text` that end with a line."""
    if len(text) < size:
        raise ValueError(
            f"text has {len(text)} bytes, at least {size} are needed: pass a longer text, or a shorter length"
        )
    newline = text.find(b"\n", rng.randrange(size - 1, len(text)))
    if newline < 0:
        newline = text.rfind(b"\n")
    if newline + 1 < size:
        raise ValueError(
            f"text of {len(text)} bytes has no line that ends {size} or more bytes into it; pass a longer text "
            "made of lines, or a shorter length"
        )
    return text[newline + 1 - size : newline + 1]


def hide(window: bytes, facts: Iterable[Fact], rng: Random) -> bytes:
    """`window` with the lines of all facts at random line boundaries, each fact's lines in their own order."""
    boundaries = [match.end() for match in re.finditer(b"\n", window)]
    placed: list[tuple[int, bytes]] = []
    for hidden in facts:
        chosen = sorted(rng.choice(boundaries) for _ in hidden.lines)
        placed.extend(zip(chosen, hidden.lines, strict=True))
    placed.sort(key=lambda place: place[0])  # stable: lines of one fact at one boundary keep their order
    parts: list[bytes] = []
    done = 0
    for at, line in placed:
        parts += (window[done:at], line)
        done = at
    return b"".join(parts) + window[done:]


def compose(
    task: str,
    text: bytes,
    length: int,
    rng: Random,
    asked: Fact,
    others: Sequence[Fact] = (),
    inside: bool = False,
) -> Sample:
    """A prompt of exactly `length` bytes: text, the lines of `asked` and of `others`, the question for `asked`."""
    facts = [asked, *others]
    size = length - len(asked.question) - sum(len(line) for hidden in facts for line in hidden.lines)
    prompt = hide(cut(text, size, rng), facts, rng) + asked.question
    return Sample(task, prompt, asked.answer, asked.scored, inside)


def check_length(length: int) -> None:
    if length < SHORTEST:
        raise ValueError(
            f"length={length} bytes is too short for the facts and some text between them; pass {SHORTEST} or more"
        )
