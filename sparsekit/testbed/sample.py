"""Makes prompts that hide facts in real text and ask for one of them at the end.

Lengths are in bytes. A fact is a few lines of source or prose, or one block of many lines. Its question begins in the
same wording, so that the model continues with the answer. Each line is inserted at a line boundary, at a random depth;
the lines of a fact keep their order.
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

    `answer` must follow `question`; `scored` holds the offsets of the bytes of `answer` that count.
    """

    lines: tuple[bytes, ...]
    question: bytes
    answer: bytes
    scored: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A prompt that ends in the question, the answer that must follow, and the offsets of its bytes that count."""

    task: str
    prompt: bytes
    answer: bytes
    scored: tuple[int, ...]
    inside: bool = False  # whether the right answer is read with the prompt, and judged byte by byte there

    @property
    def values(self) -> tuple[tuple[int, ...], ...]:
        """The runs of consecutive scored offsets; each is one value in question."""
        runs: list[list[int]] = []
        for at in self.scored:
            if runs and at == runs[-1][-1] + 1:
                runs[-1].append(at)
            else:
                runs.append([at])
        return tuple(map(tuple, runs))

    def last(self) -> "Sample":
        """Return the sample with everything before its last value in the prompt, so that only that value counts."""
        at = self.values[-1][0]
        scored = tuple(i - at for i in self.values[-1])
        return Sample(self.task, self.prompt + self.answer[:at], self.answer[at:], scored)


def held_out(key: str) -> bool:
    """Return whether a key is for evaluation (an eighth of all keys, by hash); training uses the others."""
    return zlib.crc32(key.encode()) % 8 == 0


def keys(rng: Random, *, evaluation: bool = True, lookalikes: float = 0.0) -> Iterator[str]:
    """Yield endless different keys from one side of the split; the share `lookalikes` differ in one letter only."""
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
    """Yield different pronounceable words of WORD_LETTERS letters, from one side of the split of a million words."""
    seen: set[str] = set()
    while True:
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(WORD_LETTERS // 2))
        if word not in seen and held_out(word) == evaluation:
            seen.add(word)
            yield word


def value(rng: Random) -> str:
    """Return a random number of VALUE_DIGITS digits."""
    return str(rng.randrange(10 ** (VALUE_DIGITS - 1), 10**VALUE_DIGITS))


def fact(lines: Sequence[str], question: str, answer: Sequence[tuple[str, bool]]) -> Fact:
    """Return a Fact from text; the answer is given in pieces, each with whether its bytes count."""
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
    """Return `size` contiguous bytes of `text` that end with a line. Raises ValueError if the text is too short."""
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
    """Return `window` with the lines of all facts at random line boundaries; a fact's lines keep their order."""
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
    """Return a sample of exactly `length` bytes: text with the lines of all facts, then the question of `asked`."""
    facts = [asked, *others]
    size = length - len(asked.question) - sum(len(line) for hidden in facts for line in hidden.lines)
    prompt = hide(cut(text, size, rng), facts, rng) + asked.question
    return Sample(task, prompt, asked.answer, asked.scored, inside)


def check_length(length: int) -> None:
    """Raise ValueError for a length below SHORTEST."""
    if length < SHORTEST:
        raise ValueError(
            f"length={length} bytes is too short for the facts and some text between them; pass {SHORTEST} or more"
        )
