"""Checks of what a user sets: the message names the parameter, what came, what is allowed and what to do."""

import math
from numbers import Real
from typing import Any


def check_count(name: str, value: Any, least: int, odd: bool = False) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least` (and odd, if asked)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (odd and value % 2 == 0):
        kind = "odd whole number" if odd else "whole number"
        raise ValueError(f"{name}: got {value!r}; allowed is a {kind} of at least {least}: pass one")


def check_ratio(name: str, value: Any, low: str = "[", high: str = "]") -> None:
    """Raises ValueError unless `value` is a number in the interval from 0 to 1, whose ends "[" "]" include."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    inside = number and (0 <= value if low == "[" else 0 < value) and (value <= 1 if high == "]" else value < 1)
    if not inside:
        raise ValueError(f"{name}: got {value!r}; allowed is a number in {low}0, 1{high}: pass one")


def check_choice(name: str, value: Any, allowed: tuple) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed are {', '.join(map(repr, allowed))}: pass one of them")
