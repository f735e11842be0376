"""pass@k against a count of all subsets; intervals against published tables and their definitions."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo.ops.intervals import (
    Z95,
    clustered_wilson,
    pass_at_k,
    student_interval,
    student_t,
    wilson,
)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([i < correct for i in range(n)], k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_large_numbers():
    # 1 - C(9900, 100) / C(10000, 100), exactly.
    exact = 1 - math.comb(9_900, 100) / math.comb(10_000, 100)
    assert pass_at_k(10_000, 100, 100) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(10_000, 0, 100) == 0.0
    assert pass_at_k(10_000, 9_901, 100) == 1.0


def test_pass_at_k_is_unbiased():
    """Completions right with probability 0.3: the mean over all numbers of right ones is 1 - 0.7^k."""
    for k in (1, 3, 5):
        mean = sum(math.comb(5, c) * 0.3**c * 0.7 ** (5 - c) * pass_at_k(5, c, k) for c in range(6))
        assert mean == pytest.approx(1 - 0.7**k)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17
        # (1998), table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(right: int, n: int, low: float, high: float):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    # The interval of the complement is the mirror image.
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_intervals_of_nothing_are_everything():
    assert wilson(0, 0) == (0.0, 1.0)
    assert clustered_wilson([], 0) == (0.0, 1.0)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9))
def test_one_answer_a_problem_or_many_equal_ones_are_as_many_answers_as_problems(right: list[bool], num: int):
    """Repeating an answer to a problem adds nothing to what is known of the problems."""
    values = [float(value) for value in right]
    assert clustered_wilson(values, num * len(right)) == pytest.approx(wilson(sum(right), len(right)))


def test_problems_that_do_not_differ_count_all_their_answers():
    # Each of 10 problems half right in 8 answers: no more is known than 80 answers tell, and no less.
    assert clustered_wilson([0.5] * 10, 80) == wilson(40, 80)
    # All wrong: the answers could all be the same.
    assert clustered_wilson([0.0] * 10, 80) == wilson(0, 10)


def test_the_clustered_interval_has_the_width_of_the_normal_one_for_many_problems():
    """p -+ z s / sqrt(m), with s that of the problems' values, which Wilson's tends to."""
    rng = random.Random(0)
    values = [rng.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(4_000)]
    low, high = clustered_wilson(values, 16_000)
    half = Z95 * statistics.pstdev(values) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert (high + low) / 2 == pytest.approx(statistics.fmean(values), abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "value"),
    # Any printed table of the t distribution, two-sided 5 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_student_t(degrees: int, value: float):
    assert student_t(degrees) == pytest.approx(value, abs=5e-4)


def test_student_interval_by_hand():
    # Mean 0.5; squares 0.01 + 0 + 0.01 over 2 give s = 0.1; t of 2 degrees is 4.3027.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert student_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5 - half, 0.5 + half))
    assert student_interval([0.4]) is None
