"""Splits that share nothing, of problems that share marks in any way."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from egspo.splits import sharing, take_apart

MARKS = st.lists(st.sets(st.integers(0, 12), max_size=3), max_size=20)


@given(MARKS, st.integers(0, 6), st.integers(0, 6))
def test_splits_share_nothing_and_are_as_large_as_asked(marks, first, second):
    splits = take_apart(marks, {"a": first, "b": second}, "rest", random.Random(0))
    assert sorted(itertools.chain(*splits.values())) == list(range(len(marks)))
    shown = [set().union(*(marks[i] for i in split)) for split in splits.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(shown, 2))
    largest = max(map(len, sharing(marks)), default=0)
    assert len(splits["a"]) < first + largest or not splits["a"]
    if splits["rest"]:
        assert len(splits["a"]) >= first and len(splits["b"]) >= second


def test_what_shares_by_way_of_others_is_together():
    assert sharing([{1}, {2}, {3}, {1, 2}, set()]) == [[2], [0, 1, 3], [4]]


def test_problems_that_share_nothing_are_drawn_one_by_one():
    marks = [{i} for i in range(50)]
    order = random.Random("0 x").sample(range(50), 50)
    splits = take_apart(marks, {"validation": 7, "test": 5}, "train", random.Random("0 x"))
    assert splits == {
        "validation": sorted(order[:7]),
        "test": sorted(order[7:12]),
        "train": sorted(order[12:]),
    }
