"""Tests of intervals: they equal published figures and have the properties of any interval."""

import math
import random
import statistics
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS

from sparsekit.evaluation.statistics import (
    Estimate,
    certainty,
    difference,
    mean,
    mean_difference,
)

PARTS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=60)
CLOSE = dict(rel_tol=0, abs_tol=1e-12)  # rounding of a few float64 operations on numbers of order 1


def table(both, first, second, neither):
    """Return the two sequences of right and wrong answers that a paired 2x2 table counts."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(0.0, 0.0)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: the single proportion's score interval.
@pytest.mark.parametrize(
    "right, n, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(right, n, low, high):
    found = mean([1.0] * right + [0.0] * (n - right))
    assert (round(found.low, 4), round(found.high, 4), found.n) == (low, high, n)


# Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8: two trials.
@pytest.mark.parametrize(
    "counts, low, high, digits", [((1, 1, 7, 12), -0.507, -0.026, 3), ((59, 6, 16, 80), -0.1186, -0.0046, 4)]
)
def test_newcombe_gives_the_published_intervals(counts, low, high, digits):
    found = difference(*table(*counts))
    assert (round(found.low, digits), round(found.high, digits)) == (low, high) and not found.includes_zero


@given(PARTS)
def test_a_mean_lies_in_its_interval_and_more_prompts_narrow_it(parts):
    found, more = mean(parts), mean(parts * 4)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0 and found.low < found.high
    assert math.isclose(found.value, sum(parts) / len(parts), **CLOSE) and found.n == len(parts)
    assert more.high - more.low < found.high - found.low
    flipped = mean([1.0 - part for part in parts])
    assert math.isclose(flipped.low, 1.0 - found.high, **CLOSE) and math.isclose(flipped.high, 1 - found.low, **CLOSE)


def test_a_better_prompt_raises_both_ends():
    ends = [mean([1.0] * right + [0.0] * (40 - right)) for right in range(41)]
    for worse, better in zip(ends, ends[1:], strict=False):
        assert worse.low < better.low and worse.high < better.high


@given(PAIRS)
def test_a_difference_lies_in_its_interval_and_turns_with_its_sides(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found, turned = difference(ours, theirs), difference(theirs, ours)
    assert -1.0 - 1e-12 <= found.low <= found.value <= found.high <= 1.0 + 1e-12 and found.n == len(pairs)
    for mine, other in ((found.value, -turned.value), (found.low, -turned.high), (found.high, -turned.low)):
        assert math.isclose(mine, other, **CLOSE)


@given(PARTS)
def test_the_same_parts_differ_by_nothing_within_an_interval_that_is_not_empty(parts):
    found = difference(parts, parts)
    assert found.value == 0.0 and found.low < 0.0 < found.high and found.includes_zero


def test_pairs_that_agree_narrow_the_interval():
    agreeing, mixed, opposed = (difference(*table(both, n, n, both)) for both, n in ((30, 2), (16, 16), (2, 30)))
    widths = [found.high - found.low for found in (agreeing, mixed, opposed)]
    assert widths == sorted(widths) and len(set(widths)) == 3


def test_all_right_against_many_wrong_is_a_difference():
    assert not difference([1.0] * 40, [1.0] * 30 + [0.0] * 10).includes_zero
    assert difference([1.0] * 40, [1.0] * 39 + [0.0]).includes_zero, "one prompt in forty is not"


def share_covered(rng, n, draw, truth, estimate, rounds=2000):
    hits = 0
    for _ in range(rounds):
        found: Estimate = estimate([draw(rng) for _ in range(n)])
        hits += found.low <= truth <= found.high
    return hits / rounds


@pytest.mark.parametrize("p", [0.6, 0.9, 0.98])
def test_intervals_of_a_mean_cover_it(p):
    """Check a coverage of 95% on average over p. At one p discrete counts move it by up to 3 points (Newcombe 1998)."""
    covered = share_covered(random.Random(1), 40, lambda rng: float(rng.random() < p), p, mean)
    partly = share_covered(random.Random(2), 40, lambda rng: sum(rng.random() < p for _ in range(4)) / 4, p, mean)
    assert covered >= 0.92 and partly >= 0.95, "parts vary less than proportions do"


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_intervals_of_a_difference_cover_it(shared):
    """Some prompts, a part `shared`, are hard for both methods; besides, each makes errors of its own."""

    def pair(rng):
        hard = rng.random() < shared * 0.2
        return tuple(float(not hard and rng.random() < p) for p in (0.97, 0.9))

    truth = (1 - shared * 0.2) * (0.97 - 0.9)
    covered = share_covered(random.Random(3), 40, pair, truth, lambda pairs: difference(*zip(*pairs, strict=True)))
    assert covered >= 0.93


def of_prompts(rng, n, p, alike, answers):
    """Return parts right of prompts. `alike` is how often the answers of a prompt agree: 0 never, 1 always."""
    chances = [rng.betavariate(p * (1 / alike - 1), (1 - p) * (1 / alike - 1)) for _ in range(n)]
    return chances, [sum(rng.random() < chance for _ in range(answers)) / answers for chance in chances]


@pytest.mark.parametrize("n, p", [(4, 0.6), (12, 0.9), (44, 0.97)])
@pytest.mark.parametrize("alike", [0.02, 0.3, 0.8])
def test_intervals_of_several_answers_a_prompt_cover_the_mean_and_are_no_wider_than_of_prompts(n, p, alike):
    rng, held, wide, narrow = random.Random(1), 0, 0.0, 0.0
    for _ in range(1000):
        _, parts = of_prompts(rng, n, p, alike, 4)
        found, plain = mean(parts, 4), mean(parts)
        held += found.low <= p <= found.high
        assert plain.low <= found.low <= found.value <= found.high <= plain.high and found.n == n
        narrow, wide = narrow + found.high - found.low, wide + plain.high - plain.low
    assert held >= 900
    assert narrow < 0.95 * wide or alike > 0.5 or p > 0.95, "answers that are not alike are worth more"


def test_intervals_of_a_difference_of_several_answers_a_prompt_cover_it():
    rng, held = random.Random(2), 0
    for _ in range(1000):
        chances, ours = of_prompts(rng, 24, 0.9, 0.3, 4)
        theirs = [sum(rng.random() < chance * 0.9 for _ in range(4)) / 4 for chance in chances]
        found = difference(ours, theirs, 4)
        held += found.low <= 0.09 <= found.high
    assert held >= 930


def by_hand(gaps):
    """Compute the p-value in whole numbers by trying all signs of all differences."""
    sums = [sum(s * g for s, g in zip(signs, gaps, strict=True)) for signs in product((1, -1), repeat=len(gaps))]
    return sum(abs(one) >= abs(sum(gaps)) for one in sums) / len(sums)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_a_certainty_is_the_part_of_all_swaps_that_differ_as_much(pairs):
    ours, theirs = ([one / 4 for one in some] for some in zip(*pairs, strict=True))
    assert certainty(ours, theirs) == pytest.approx(by_hand([a - b for a, b in pairs]))
    assert certainty(theirs, ours) == certainty(ours, theirs)


def test_a_certainty_holds_for_answers_in_thirds_and_quarters_and_for_many_prompts():
    assert certainty([1 / 3, 2 / 3, 0.75], [0.0, 1 / 3, 0.5]) == 2 / 2**3
    assert certainty([0.5] * 7, [0.5] * 7) == 1.0
    assert certainty([1.0] * 40, [0.0] * 40) == pytest.approx(2 / 2**40)
    rng = random.Random(0)
    ours = [rng.randrange(5) / 4 for _ in range(400)]
    assert 0 <= certainty(ours, [rng.randrange(7) / 6 for _ in ours]) <= 1
    low = sum(
        certainty(*([float(rng.random() < 0.8) for _ in range(30)] for _ in range(2))) <= 0.05 for _ in range(1000)
    )
    assert low <= 65, "where there is no difference, few are called sure"
    with pytest.raises(ValueError, match="theirs: got"):
        certainty([], [])


def test_students_interval_is_the_tables():
    for n, t in ((2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042)):
        gaps = [float(i) for i in range(n)]
        found = mean_difference(gaps, [0.0] * n)
        assert found.high - found.value == pytest.approx(t * statistics.stdev(gaps) / math.sqrt(n), rel=2e-3)
    one = mean_difference([2.0], [1.5])
    assert (one.value, one.low, one.high, one.includes_zero) == (0.5, -math.inf, math.inf, True)
    with pytest.raises(ValueError, match="theirs: got"):
        mean_difference([1.0], [])


@given(SEEDS)
def test_order_of_the_prompts_does_not_matter(seed):
    rng = random.Random(seed)
    pairs = [(rng.random(), rng.random()) for _ in range(20)]
    mixed = rng.sample(pairs, len(pairs))
    one, other = (difference(*zip(*some, strict=True)) for some in (pairs, mixed))
    assert math.isclose(one.low, other.low, **CLOSE) and math.isclose(one.high, other.high, **CLOSE)


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="parts: got no parts"):
        mean([])
    with pytest.raises(ValueError, match=r"parts: got 1.5; allowed is \[0, 1\]"):
        mean([0.5, 1.5])
    with pytest.raises(ValueError, match="ours: got nan"):
        difference([float("nan")], [1.0])
    with pytest.raises(ValueError, match="theirs: got 1 parts for the 2 of ours"):
        difference([1.0, 1.0], [1.0])
