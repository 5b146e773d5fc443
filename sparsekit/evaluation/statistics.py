"""Means over prompts, and differences between two methods on the same prompts, with 95% intervals.

The unit is a prompt: the answers of one prompt are not independent, so n counts prompts, never answers or digits.
Each prompt gives the part of its answers that is right, in [0, 1]. The intervals are those of proportions. The number
of independent trials lies between the number of prompts and the number of answers: it is larger if the parts vary less.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Z = statistics.NormalDist().inv_cdf(0.975)  # of a 95% interval
FINEST = 5040  # the permutation test rounds parts to at most this many steps


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float
    n: int  # prompts

    @property
    def includes_zero(self) -> bool:
        """Whether the interval contains 0, so that no difference was detected."""
        return self.low <= 0.0 <= self.high


def mean(parts: Sequence[float], answers: float = 1.0) -> Estimate:
    """Return the mean of parts in [0, 1], one a prompt, with Wilson's interval (Wilson 1927, JASA 22:209).

    `answers` is the mean number of answers of a prompt, at least 1: with 1 the interval is that of prompts that are
    right or wrong as a whole. Raises ValueError for no parts, or one outside [0, 1].
    """
    _check("parts", parts)
    value = statistics.fmean(parts)
    return _wilson(value, len(parts), len(parts) * _worth(parts, value, answers))


def difference(ours: Sequence[float], theirs: Sequence[float], answers: float = 1.0) -> Estimate:
    """Return the mean of ours - theirs in [-1, 1], both on the same prompts in the same order.

    The interval is Newcombe's for paired proportions: the two Wilson intervals, squared and added with the pairs'
    correlation (Newcombe 1998, Statistics in Medicine 17:2635, method 10). It has a width even if all parts are 1.
    `answers` as for `mean`. Raises ValueError for no parts, one outside [0, 1], or sequences that do not pair.
    """
    _check("ours", ours)
    _check("theirs", theirs)
    _check_pairs(ours, theirs)
    n = len(ours)
    own, other = mean(ours, answers), mean(theirs, answers)
    phi = _correlation(ours, theirs, own.value, other.value, answers)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = own.value - other.value
    low = value - distance(own.value - own.low, other.high - other.value)
    high = value + distance(own.high - own.value, other.value - other.low)
    return Estimate(value, low, high, n)


def certainty(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the p-value of no difference between ours and theirs, on the same prompts in the same order.

    It is exact (Fisher's permutation test, paired, two-sided): of all ways to swap the two methods on some of the
    prompts, the part that gives a difference at least as large. With one answer per prompt it is McNemar's exact test.
    Raises ValueError for no prompts, or sequences that do not pair.
    """
    _check_pairs(ours, theirs)
    gaps = [Fraction(a - b).limit_denominator(FINEST) for a, b in zip(ours, theirs, strict=True)]
    scale = min(FINEST, math.lcm(*(gap.denominator for gap in gaps)))
    steps = [abs(round(gap * scale)) for gap in gaps]
    observed = abs(sum(round(gap * scale) for gap in gaps))
    chances = np.ones(1)  # probability of each sum from -all to all, in steps of one
    for step in filter(None, steps):
        half, chances = chances / 2, np.zeros(len(chances) + 2 * step)
        chances[: len(half)] += half
        chances[-len(half) :] += half
    middle = len(chances) // 2
    sums = np.abs(np.arange(len(chances)) - middle)
    return min(1.0, float(chances[sums >= observed].sum()))


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the mean of ours - theirs, any real numbers, both on the same prompts in the same order.

    The interval is Student's, which is valid for few prompts, too; for one prompt it is infinite. Raises ValueError for
    no prompts, or sequences that do not pair.
    """
    _check_pairs(ours, theirs)
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    value, n = statistics.fmean(gaps), len(gaps)
    half = _student(n - 1) * statistics.stdev(gaps) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(value, value - half, value + half, n)


def _wilson(share: float, n: int, worth: float) -> Estimate:
    """Return Wilson's interval of a share of `n` prompts that are worth `worth` independent trials."""
    spread = Z * Z / worth
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / worth + spread / (4 * worth)) / (1 + spread)
    # rounding must not push an end past the mean it belongs to, or out of [0, 1]
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n)


def _worth(parts: Sequence[float], value: float, answers: float) -> float:
    """Return how many independent trials a prompt's part is worth, in [1, answers].

    It is the variance of prompts that are right or wrong as a whole, over the variance of the parts. The latter counts
    one such prompt more than there are, so that a few prompts that agree by chance are not worth too much.
    """
    whole = value * (1 - value)
    if whole <= 0 or answers <= 1:
        return 1.0
    varies = (sum((part - value) ** 2 for part in parts) + whole) / len(parts)
    return min(max(1.0, whole / varies), answers)


def _correlation(ours: Sequence[float], theirs: Sequence[float], p: float, q: float, answers: float) -> float:
    """Return phi of the pairs with method 10's correction, which makes a positive covariance half an answer smaller."""
    n = len(ours)
    variance = p * (1 - p) / _worth(ours, p, answers) * q * (1 - q) / _worth(theirs, q, answers)
    covariance = statistics.fmean(a * b for a, b in zip(ours, theirs, strict=True)) - p * q
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * n * max(1.0, answers)))
    return max(-1.0, min(1.0, covariance / math.sqrt(variance))) if variance > 0 else 0.0


def _student(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t: closed forms, then the expansion in 1 / freedom."""
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))


def _check_pairs(ours: Sequence[float], theirs: Sequence[float]) -> None:
    if not ours or len(ours) != len(theirs):
        raise ValueError(
            f"theirs: got {len(theirs)} parts for the {len(ours)} of ours; allowed is one for each of ours, at least "
            "one: pass the parts of the same prompts in the same order"
        )


def _check(name: str, parts: Sequence[float]) -> None:
    if not parts:
        raise ValueError(f"{name}: got no parts; allowed is one or more: pass the part of at least one prompt")
    for part in parts:
        if not 0.0 <= part <= 1.0:
            raise ValueError(f"{name}: got {part}; allowed is [0, 1]: pass the part of a prompt's right answers")
