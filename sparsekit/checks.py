"""Checks of parameters. The message names the parameter, its value, what is allowed and what to do."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

ALL = 2**31 - 1  # as a window or a number of tokens: all, because positions are int32, and no sequence is longer
LARGEST_SIZE = 2**16  # tokens of a block or a pool: memory grows with them, and no useful one is near this


def check_count(name: str, value: Any, least: int, odd: bool = False) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`, and odd if `odd`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (odd and value % 2 == 0):
        kind = "odd whole number" if odd else "whole number"
        raise ValueError(f"{name}: got {value!r}; allowed is a {kind} of at least {least}: pass one")


def check_amount(step: Any, name: str, least: int) -> None:
    """Check a number of tokens in a dataclass, in its `__post_init__`; set one larger than ALL to ALL."""
    check_count(name, getattr(step, name), least)
    if getattr(step, name) > ALL:
        object.__setattr__(step, name, ALL)


def check_size(name: str, value: Any, odd: bool = False) -> None:
    """Raise ValueError unless `value` is a whole number from 1 to LARGEST_SIZE, because it sets the memory needed."""
    check_count(name, value, 1, odd)
    if value > LARGEST_SIZE:
        raise ValueError(f"{name}: got {value!r}; allowed is at most {LARGEST_SIZE} tokens: pass a smaller one")


def check_ratio(name: str, value: Any, low: str = "[", high: str = "]") -> None:
    """Raise ValueError unless `value` is a number from 0 to 1; "[" and "]" include the end, "(" and ")" do not."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    inside = number and (0 <= value if low == "[" else 0 < value) and (value <= 1 if high == "]" else value < 1)
    if not inside:
        raise ValueError(f"{name}: got {value!r}; allowed is a number in {low}0, 1{high}: pass one")


def check_choice(name: str, value: Any, allowed: tuple) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        text = f"{name}: got {value!r}; allowed are {', '.join(map(repr, allowed))}: pass one of them"
        raise ValueError(text + did_you_mean(value, allowed))


def did_you_mean(value: Any, allowed: Iterable[Any]) -> str:
    """Return ", did you mean 'x'?" for the text among `allowed` that is most like `value`, "" if none is like it."""
    if not isinstance(value, str):
        return ""
    by_letters = {text.lower(): text for text in allowed if isinstance(text, str)}
    close = get_close_matches(value.lower(), by_letters, n=1)
    return f", did you mean {by_letters[close[0]]!r}?" if close else ""
