"""What a mean over prompts says, and what a difference between two methods on the same prompts says.

The unit is a prompt: the answers of one prompt are not independent, so n counts prompts, never answers or digits.
Each prompt gives the part of its answers that are right, in [0, 1]. The intervals are those of proportions. A mean
of parts varies at most as much as a proportion of the same mean, so where prompts are partly right they are wider
than they need be, never narrower.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = statistics.NormalDist().inv_cdf(0.975)  # of a 95% interval
DRAWS = 10_000  # of a bootstrap


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, with its 95% interval."""

    value: float
    low: float
    high: float
    n: int  # prompts

    @property
    def none(self) -> bool:
        """Whether 0 lies inside the interval: of a difference, that none was seen."""
        return self.low <= 0.0 <= self.high


def mean(parts: Sequence[float]) -> Estimate:
    """The mean of parts in [0, 1], one a prompt, with Wilson's interval (Wilson 1927, JASA 22:209).

    Raises ValueError for no parts, or one outside [0, 1].
    """
    _check("parts", parts)
    return _wilson(statistics.fmean(parts), len(parts))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of ours - theirs in [-1, 1], both on the same prompts in the same order.

    The interval is Newcombe's for paired proportions: the two Wilson intervals, squared and added with the pairs'
    correlation (Newcombe 1998, Statistics in Medicine 17:2635, method 10). It has a width even where all are right.
    Raises ValueError for no parts, one outside [0, 1], or sequences that do not pair.
    """
    _check("ours", ours)
    _check("theirs", theirs)
    _check_pairs(ours, theirs)
    n = len(ours)
    mine, other = mean(ours), mean(theirs)
    phi = _correlation(ours, theirs, mine.value, other.value)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = mine.value - other.value
    low = value - distance(mine.value - mine.low, other.high - other.value)
    high = value + distance(mine.high - mine.value, other.value - other.low)
    return Estimate(value, low, high, n)


def bootstrap_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of ours - theirs, of anything, both on the same prompts in the same order.

    The interval is the percentile bootstrap's (Efron 1979): it needs 10 prompts or more, and has no width where all
    differences are the same. Raises ValueError for no prompts, or sequences that do not pair.
    """
    _check_pairs(ours, theirs)
    gaps = np.subtract(ours, theirs)
    means = np.random.default_rng(0).choice(gaps, (DRAWS, len(gaps))).mean(1)
    low, high = map(float, np.quantile(means, (0.025, 0.975)))
    return Estimate(float(gaps.mean()), low, high, len(gaps))


def _wilson(share: float, n: int) -> Estimate:
    spread = Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # rounding must not push an end past the mean it belongs to, or out of [0, 1]
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n)


def _correlation(ours: Sequence[float], theirs: Sequence[float], p: float, q: float) -> float:
    """Phi of the pairs, with method 10's correction: a positive covariance is taken half a pair smaller."""
    n, variance = len(ours), p * (1 - p) * q * (1 - q)
    covariance = statistics.fmean(a * b for a, b in zip(ours, theirs, strict=True)) - p * q
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * n))
    return covariance / math.sqrt(variance) if variance > 0 else 0.0


def _check_pairs(ours: Sequence[float], theirs: Sequence[float]) -> None:
    if not ours or len(ours) != len(theirs):
        raise ValueError(
            f"theirs: got {len(theirs)} parts for the {len(ours)} of ours; allowed is one for each, of one or more: "
            "pass those of the same prompts in the same order"
        )


def _check(name: str, parts: Sequence[float]) -> None:
    if not parts:
        raise ValueError(f"{name}: got no parts; allowed is one or more: pass the part right of at least one prompt")
    for part in parts:
        if not 0.0 <= part <= 1.0:
            raise ValueError(f"{name}: got {part}; allowed is [0, 1]: pass the part of a prompt's answers right")
