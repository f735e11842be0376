"""Values written to plain data and read back; and whatever is read that nobody wrote."""

import json
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo.sandbox.guest.graph import Decoder, Encoder
from egspo.sandbox.guest.wire import WireError

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False) | st.dates()
)  # fmt: skip
HASHABLE = st.recursive(SCALARS, lambda x: st.tuples(x, x) | st.frozensets(x, max_size=3), max_leaves=6)
VALUES = st.recursive(
    HASHABLE,
    lambda x: st.lists(x) | st.tuples(x, x) | st.dictionaries(HASHABLE, x) | st.sets(HASHABLE, max_size=4),
    max_leaves=12,
)
REFERENCES = st.lists(st.integers(-2, 8), max_size=2)
TAGS = st.sampled_from("lsdtzqOCDIifScyYrEFT!=/")
NODE = st.lists(TAGS | REFERENCES | st.integers() | st.text(max_size=3), max_size=5)
NODES = st.lists(NODE | st.integers())


def refuse(x, other):
    raise WireError("no plain data")


def there_and_back(x: object) -> object:
    encoder = Encoder(refuse)
    root = encoder.value(x)
    message = json.loads(json.dumps([root, encoder.finish()]))
    return Decoder(refuse, message[1]).build([message[0]])[0]


@given(VALUES)
def test_what_is_written_is_read(x):
    found = there_and_back(x)
    assert found == x and type(found) is type(x)


PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range,
    slice, deque, Counter, OrderedDict, defaultdict, Decimal, Fraction, date, time, datetime, timedelta,
    type(...), type(NotImplemented),
)  # fmt: skip


def classes(x: object) -> set[type]:
    """Classes of an object and of all that is in it, whatever refers to itself."""
    left, seen = [x], {}
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list | tuple | set | frozenset | deque):
            left += item
        elif isinstance(item, slice):
            left += [item.start, item.stop, item.step]
    return {type(item) for item in seen.values()}


@given(NODES, REFERENCES)
def test_nonsense_is_refused_in_words_or_is_plain(nodes, root):
    try:
        (found,) = Decoder(refuse, nodes).build([root])
    except WireError as error:
        assert str(error)
        return
    assert classes(found) <= set(PLAIN)


def test_shape_survives():
    shared = [1]
    a, b, c = there_and_back([shared, shared, (shared,)])
    assert a is b is c[0]
    ring = {}
    ring["self"] = (ring, [ring])
    found = there_and_back(ring)
    assert found["self"][0] is found is found["self"][1][0]


def test_depth_is_no_limit():
    deep = ()
    for _ in range(10_000):
        deep = (deep,)
    found, depth = there_and_back(deep), 0
    while found:
        (found,), depth = found, depth + 1
    assert depth == 10_000


def test_a_tuple_cannot_contain_itself():
    with pytest.raises(WireError, match="itself"):
        Decoder(refuse, [["t", [1]], ["t", [0]]]).build([[0]])


def test_known_objects_keep_their_identity():
    given_list = [3, 1]
    asked = Encoder(refuse)
    roots = asked.values([given_list, 5])
    there = Decoder(refuse, asked.finish())
    received = there.build(roots)[0]
    received.sort()
    answer = Encoder(refuse, there.objects)
    root = answer.value([received])
    back = Decoder(refuse, answer.finish(), asked.objects)
    assert back.build([root])[0][0] is given_list
    back.update(0, ["l", 1, 3])
    assert given_list == [1, 3]
    with pytest.raises(WireError):
        back.update(0, ["s", 1])
