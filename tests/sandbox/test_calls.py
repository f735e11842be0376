"""What tests can do with a program that runs in another process, told by the reason where they cannot."""

import pytest

from egspo.sandbox import Outcome, Program, Sandbox, SandboxConfig, tiers

WORKS = [name for name, works, _ in tiers() if works and name != "unsafe"]

LIST_NODE = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

def chain(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def values(node):
    return [] if node is None else [node.val, *values(node.next)]
"""
STACK = """
class Empty(LookupError):
    def __init__(self, depth):
        super().__init__(f"empty at {depth}")
        self.depth = depth

class Stack:
    LIMIT = 3
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self):
        if not self.items: raise Empty(0)
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __contains__(self, item): return item in self.items
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other): return Stack(*self.items, *other.items)
    def __repr__(self): return f"Stack({self.items})"
    def __enter__(self): return self
    def __exit__(self, *error): self.items.clear(); return False
    @property
    def top(self): return self.items[-1]
    @classmethod
    def of(cls, *items): return cls(*items)
    @staticmethod
    def double(x): return 2 * x
"""

# name: (source, tests, setup, preamble)
PASSES = {
    "plain data there and back": (
        "def same(x): return x",
        (
            "for x in (None, True, 7, -2**70, 1.5, float('inf'), 2j, 'a\\ud800\\n', b'\\x00\\xff', "
            "bytearray(b'a'),"
            " [1, [2]], (1, (2,)), {1, 2}, frozenset({(1, 2)}), {'a': [1], (1, 2): {3: 4}}, range(2, "
            "9, 3), ...):\n"
            "    assert same(x) == x and type(same(x)) is type(x), x",
            "x = float('nan'); assert same(x) != same(x)",
            "import collections as c\n"
            "for x in (c.deque([1, 2], maxlen=3), c.Counter('aab'), c.OrderedDict([(2, 1), (1, 2)]),"
            " c.defaultdict(list, {1: [2]})):\n"
            "    assert same(x) == x and type(same(x)) is type(x), x",
            "import datetime as d, decimal, fractions\n"
            "for x in (d.date(2024, 2, 29), d.datetime(2024, 1, 1, 12), d.time(1, 2), d.timedelta(1, 2, 3),"
            " decimal.Decimal('1.10'), fractions.Fraction(1, 3)):\n"
            "    assert same(x) == x and type(same(x)) is type(x), x",
            "x = []; x.append(x); y = same(x); assert y is x and y[0] is y",
            "assert same(int) is int and same(ValueError) is ValueError",
            "assert same(x=3) == 3",
            "assert type(same(object())) is not int",
        ),
        *("", ""),
    ),
    "arguments changed in place": (
        "def sort(x): x.sort()\n"
        "def add(x):\n    x['b'] = [1]; x['a'].append(2); del x['c']\n"
        "def fill(grid):\n    for row in grid: row[:] = [0] * len(row)\n    return grid[0]\n"
        "def drop(x, y): x.discard(1); y.clear()",
        (
            "x = [3, 1, 2]; assert sort(x) is None and x == [1, 2, 3]",
            "x = {'a': [1], 'c': 0}; inner = x['a']; add(x)\nassert x == {'a': [1, 2], 'b': [1]} and "
            "inner == [1, 2]",
            "g = [[1, 2], [3]]; assert fill(g) is g[0] and g == [[0, 0], [0]]",
            "x, y = {1, 2}, bytearray(b'ab'); drop(x, y); assert x == {2} and y == b''",
        ),
        *("", ""),
    ),
    "classes of the preamble": (
        "def reverse(node):\n    last = None\n    while node: node.next, last, node = last, node, "
        "node.next\n"
        "    return last\n"
        "def loop():\n    a = ListNode(1); a.next = a; return a\n"
        "def long(n): return chain(range(n))",
        (
            "assert values(reverse(chain([1, 2, 3]))) == [3, 2, 1]",
            "x = chain([1, 2]); second = x.next\nassert reverse(x) is second and second.next is x and "
            "x.next is None",
            "x = loop(); assert isinstance(x, ListNode) and x.next is x and x.val == 1",
            "n, x = 0, long(20_000)\nwhile x: n, x = n + 1, x.next\nassert n == 20_000",
        ),
        "",
        LIST_NODE,
    ),
    "classes of the preamble, defined again by the program": (
        LIST_NODE + "    \ndef second(node): return node.next",
        ("assert values(second(chain([1, 2, 3]))) == [2, 3]",),
        "",
        LIST_NODE,
    ),
    "classes of the tests": (
        "def total(point): point.x += 1; return point.x + point.y",
        ("p = Point(1, 2); assert total(p) == 4 and p.x == 2",),
        "class Point:\n    def __init__(self, x, y): self.x, self.y = x, y",
        "",
    ),
    "classes of the program": (
        STACK,
        (
            "s = Stack(); s.push(1).push(2); assert len(s) == 2 and s.pop() == 2 and s.items == [1] "
            "and s.top == 1",
            "from solution import Stack; s = Stack(1, 2, 3)\n"
            "assert isinstance(s, Stack) and type(s) is Stack and type(s).__name__ == 'Stack'",
            "s = Stack(1, 2, 3); assert list(s) == [1, 2, 3] and s[1] == 2 and s[-1] == 3 and s[:2] == "
            "[1, 2]",
            "s = Stack(1, 2); assert 2 in s and 3 not in s and repr(s) == 'Stack([1, 2])' == str(s) == "
            "f'{s}'",
            "assert Stack(1) == Stack(1) and Stack(1) != Stack(2) and Stack(1) + Stack(2) == Stack(1, 2)",
            "assert Stack.LIMIT == 3 and Stack.of(1) == Stack(1) and Stack.double(4) == 8",
            "with Stack(1) as s: assert len(s) == 1\nassert not s and len(s) == 0",
            "s = Stack(1); s.items = [5]; assert s.pop() == 5",
            "import copy; s = Stack(1); t = copy.deepcopy(s); t.push(2); assert len(s) == 1 and len(t) == 2",
            "assert [s.top for s in [Stack(2), Stack(1)]] == [2, 1]",
            "assert hasattr(Stack(), 'push') and not hasattr(Stack(), 'peek')",
        ),
        *("", ""),
    ),
    "exceptions": (
        STACK + "def fail(kind, *args): raise kind(*args)\ndef parse(x): return int(x)\n"
        "import json\ndef read(x): return json.loads(x)",
        (
            "try: fail(KeyError, 'a')\nexcept LookupError as error: assert error.args == ('a',)\nelse: "
            "assert False",
            "try: Stack().pop()\nexcept Empty as error: assert error.depth == 0 and str(error) == "
            "'empty at 0'\n"
            "else: assert False",
            "try: Stack().pop()\nexcept LookupError as error: assert type(error).__name__ == 'Empty'\n"
            "else: assert 0",
            "import pytest\nwith pytest.raises(ValueError, match='invalid literal'): parse('x')",
            "import json\ntry: read('{')\nexcept json.JSONDecodeError: pass\nelse: assert False",
            "import pytest\nwith pytest.raises(SystemExit): fail(SystemExit, 1)",
        ),
        *("", ""),
    ),
    "callables both ways": (
        "def apply(g, *args): return g(*args)\ndef add(n): return lambda x: x + n\n"
        "def keyed(items, key): return sorted(items, key=key)\n"
        "def safe(g):\n    try: return g()\n    except ZeroDivisionError: return 'caught'\n"
        "def compose(g, h): return lambda x: g(h(x))\n"
        "def counted(g):\n    def inner(*a): inner.calls += 1; return g(*a)\n    inner.calls = 0; "
        "return inner",
        (
            "assert apply(lambda x, y: x * y, 3, 4) == 12 and add(2)(3) == 5",
            "assert keyed(['bb', 'a'], len) == ['a', 'bb'] and keyed([1, 2], lambda x: -x) == [2, 1]",
            "seen = []; apply(seen.append, [1]); assert seen == [[1]]",
            "assert safe(lambda: 1 / 0) == 'caught'",
            "assert compose(lambda x: x + 1, lambda x: x * 2)(3) == 7 and compose(add(1), abs)(-3) == 4",
            "g = counted(max); assert g(1, 2) == 2 and g(3, 4) == 4 and g.calls == 2",
            "assert apply(lambda x: add(x)(1), 5) == 6",
        ),
        *("", ""),
    ),
    "iterators": (
        "import itertools\ndef squares(n):\n    for i in range(n): yield i * i\ndef count(): return "
        "itertools.count()\n"
        "def total(items): return sum(items)\ndef echo():\n    x = yield 0\n    while True: x = yield x\n"
        "def keys(d): return d.keys()",
        (
            "assert list(squares(200)) == [i * i for i in range(200)]",
            "g = squares(3); assert next(g) == 0 and next(g) == 1 and list(g) == [4]",
            "import types; assert isinstance(squares(1), types.GeneratorType)",
            "c = count(); assert [next(c) for _ in range(100)] == list(range(100))",
            "assert total(i for i in range(5)) == 10 and total(squares(4)) == 14",
            "e = echo(); next(e); assert e.send(5) == 5 and e.send(6) == 6",
            "assert keys({'a': 1}) == {'a'} and list(keys({'a': 1})) == ['a']",
        ),
        *("", ""),
    ),
    "derived from builtins": (
        "import collections, enum\nclass Pair(collections.namedtuple('Pair', 'a b')): pass\n"
        "class Bag(dict):\n    def total(self): return sum(self.values())\n"
        "class Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n"
        "def pair(): return Pair(1, 2)\ndef bag(): return Bag(a=1)\ndef red(): return Color.RED",
        (
            "p = pair(); assert p == (1, 2) and p.a == 1 and p[1] == 2",
            "assert bag() == {'a': 1} and Bag(a=2)['a'] == 2 and Bag(a=2).total() == 2 and Bag(a=2) == "
            "{'a': 2}",
            "assert red() is Color.RED and red().value == 1 and red().name == 'RED' and Color(2) is "
            "Color.BLUE",
            "assert [c.name for c in Color] == ['RED', 'BLUE']",
        ),
        *("", ""),
    ),
    "names": (
        "import math\nfrom math import gcd\nimport numpy as np\nLIMIT = 5\n_hidden = 2\n"
        "def f(x): return x\ndef sum(a, b): return a * b\n"
        "if __name__ == '__main__': raise SystemExit(3)\n",
        (
            "assert math.sqrt(f(4)) == 2 and gcd(f(4), 6) == 2 and LIMIT == 5",
            "import solution; assert solution.f(3) == 3 and solution.LIMIT == 5 and solution._hidden == 2",
            "from solution import f as g, _hidden; assert g(_hidden) == 2",
            "from solution import *; assert f(1) == 1",
            "from solution import sum as product; assert product(3, 4) == 12 and sum([f(3), 4]) == 7",
            "import solution; assert not hasattr(solution, 'absent')",
            "from solution import *; import math; assert math.sqrt(f(4)) == 2",
        ),
        *("", ""),
    ),
    "what a program may catch and raise": (
        "class Quiet:\n    def __enter__(self): return self\n"
        "    def __exit__(self, kind, error, trace): return isinstance(error, KeyError)\n"
        "def again(call):\n    try: return call(1)\n    except KeyError: return call(2)\n"
        "def refuse(): assert False, 'refused'\n"
        "def following(x):\n    if x > 2: raise StopIteration\n    return x + 1\n"
        "class Point:\n    def __init__(self, x=0): self.x = x\n"
        "    def moved(self, d): return Point(self.x + d)\n"
        "    def __rmul__(self, k): return Point(k * self.x)\n",
        (
            "with Quiet(): raise KeyError(1)\nassert again(lambda x: {2: 3}[x]) == 3",
            "with Quiet():\n    try: refuse()\n    except AssertionError as e: assert str(e) == 'refused'",
            "def call(x):\n    if x == 1: refuse()\ntry: again(call)\nexcept AssertionError: pass",
            "try: following(following(2))\nexcept StopIteration: pass\nelse: assert False",
            "p = Point(); assert (3 * p.moved(2)).x == 6",
        ),
        *("", ""),
    ),
    "iterators that are classes": (
        "class Down:\n    def __init__(self, n): self.top = n\n"
        "    def __iter__(self):\n        self.n = self.top\n        return self\n"
        "    def __next__(self):\n        self.n -= 1\n        if self.n < 0: raise StopIteration\n"
        "        return self.n\n"
        "class Tree:\n    def __iter__(self): return iter(Down(3))\ndef f(x): return Down(x)",
        (
            "assert list(f(3)) == [2, 1, 0] == list(Tree()) and sum(f(40)) == 780",
            "d = Down(2); assert [list(d), list(d)] == [[1, 0], [1, 0]] and 1 in d and 5 not in f(3)",
            "it = iter(Down(2)); assert [next(it), next(it), next(it, None)] == [1, 0, None]",
        ),
        *("", ""),
    ),
    "a builtin's name, where nothing else is asked for": (
        "def sum(a, b): return a * b",
        ("assert sum(3, 4) == 12",),
        *("", ""),
    ),
    "what it prints": (
        "def greet(name): print('hello', name)",
        (
            "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out): "
            "greet('you')\n"
            "assert out.getvalue() == 'hello you\\n'",
            "test_greet()",
        ),
        "def test_greet(capsys):\n    greet('me')\n    assert capsys.readouterr().out == 'hello me\\n'",
        "",
    ),
    "coroutines": (
        "import asyncio\nasync def later(x): await asyncio.sleep(0); return x + 1",
        ("import asyncio; assert asyncio.run(later(1)) == 2",),
        *("", ""),
    ),
    "arrays": (
        "import numpy as np\ndef double(x): return 2 * np.asarray(x)\ndef mean(x): return np.mean(x)",
        (
            "import numpy as np; assert (double(np.array([])) == np.array([])).all()",
            "import numpy as np; assert len(double([])) == 0 and double([]).sum() == 0",
            "import numpy as np; assert np.array_equal(double(np.arange(3)), [0, 2, 4]) and "
            "double([1.5]).dtype == float",
            "assert mean([1, 2]) == 1.5 and type(mean([1, 2])) is float",
        ),
        *("", ""),
    ),
    "pytest's style": (
        "def f(x): return x + 1",
        ("test_one()", "test_many()", "test_pairs()", "test_fixture()", "TestAll().test_many()"),
        "import pytest\n"
        "def test_one(): assert f(1) == pytest.approx(2)\n"
        "@pytest.mark.parametrize('x', [1, 2, pytest.param(3, id='three')])\ndef test_many(x): assert "
        "f(x) == x + 1\n"
        "@pytest.mark.parametrize('x', [1, 2])\n@pytest.mark.parametrize('y, z', [(1, 2), (3, 4)])\n"
        "def test_pairs(x, y, z): assert f(x) + y < 99 and z == y + 1\n"
        "@pytest.fixture\ndef base():\n    yield 5\n"
        "def test_fixture(base, tmp_path): assert f(base) == 6 and tmp_path.is_dir()\n"
        "class TestAll:\n    @pytest.mark.parametrize('x', [1, 2])\n    def test_many(self, x): assert "
        "f(x) == x + 1\n",
        "",
    ),
}


@pytest.fixture(scope="module", params=WORKS)
def box(request):
    with Sandbox(SandboxConfig(tier=request.param, timeout=20, workers=2)) as made:
        yield made


def test_tests_run_as_if_in_one_process(box):
    programs = [Program(s, tests, setup, preamble) for s, tests, setup, preamble in PASSES.values()]
    outcomes = dict(zip(PASSES, box.run(programs), strict=True))
    assert {name: x.reason for name, x in outcomes.items() if not x.correct} == {}


def test_a_near_miss_fails_where_it_should(box):
    cases = "import pytest\n@pytest.mark.parametrize('x', [1, 2, 9])\ndef test_f(x): assert f(x) == x + 1"
    program = Program(
        "def f(x): return 10 if x > 2 else x + 2 if x == 2 else x + 1",
        ("assert f(1) == 2", "test_f()"),
        cases,
    )
    (outcome,) = box.run([program])
    # One of two: the second stops at its case 2.
    assert outcome == Outcome(1, 2, "test 2 of 2: AssertionError")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (Program("def f(x: pass", ("f(1)",)), "program: SyntaxError: "),
        (Program("1 / 0", ("f(1)",)), "program: ZeroDivisionError: division by zero"),
        (Program("def f(): return 1", ()), "no tests"),
        (Program("def f(): return 1", ("f() = 2",)), "test 1 of 1: SyntaxError: "),
        (Program("def f(): return 1", ("f()",), setup="1 / 0"), "setup: ZeroDivisionError"),
        (Program("def f(): return 1", ("f()",), preamble="1 / 0"), "preamble: ZeroDivisionError"),
        (Program("def g(): return 1", ("f()",)), "test 1 of 1: NameError: name 'f' is not defined"),
        (Program("def f(): return 1", ("import no_such_package",)), "needs no_such_package"),
        (
            Program("class A: pass\nclass B(A): pass", ("class C(A): pass",)),
            "derives a class from the program's A",
        ),
        (Program("def f(x): pass", ("f(open('/dev/null'))",)), "cannot be given to the program"),
        (Program("import os", ("os.getcwd()",)), "the test uses os.getcwd by the program's import of it"),
        (Program("def f(): return 1", ("assert f() == 1, 'no'", "assert f() == 2, 'not two'")), "not two"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_reason_says_what_is_wrong(program, reason):
    with Sandbox(
        SandboxConfig(tier=WORKS[0], workers=1) if WORKS else pytest.skip("no tier works here")
    ) as box:
        (outcome,) = box.run([program])
    assert reason in outcome.reason and not outcome.correct
