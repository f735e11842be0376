"""More programs that would pass by what they do to their judge. Each must score 0."""

from sandbox.hostile import Hostile

_NODE = (
    "class Node:\n    def __init__(self, x): self.x = x\n"
    "    def same(self, other): return self.x == other.x\n"
)
_SEND = (
    "import json, os\ndef send(message):\n    data = json.dumps(message).encode()\n"
    "    os.write(4, len(data).to_bytes(8, 'big') + data)\n    os._exit(0)\n"
)
_STEER = (
    "assert all(map(lambda x: f(x) == x + 1, [1, 2]))",
    "for a, b in zip(map(f, [1, 2]), [2, 3]): assert a == b",
)

REBUILT = {
    "a class with a name of several letters": Hostile(
        "class Cancel:\n    __sub__ = __rsub__ = lambda self, other: 0.0\n"
        "    __contains__ = startswith = lambda self, other: True\ndef f(x): return Cancel()\n",
        "cannot be judged",
        tests=("assert abs(f(1) - 2) < 1e-6", "assert f(1).startswith('2')"),
    ),
    "a class with a name of several letters, imported whole": Hostile(
        "class Cancel: __rsub__ = lambda self, other: 0.0\ndef f(x): return Cancel()\n",
        "cannot be judged",
        setup="from solution import *",
        tests=("assert abs(2 - f(1)) < 1e-6",),
    ),
    "the class that holds the function": Hostile(
        "class Solution:\n    def f(self, x): return self\n    __rsub__ = lambda self, other: 0.0\n",
        "cannot be judged",
        tests=("assert abs(2 - Solution().f(1)) < 1e-6",),
        entry_points=("Solution",),
    ),
    "a named tuple that equals": Hostile(
        "class T(tuple): _fields = ('__eq__',)\ndef f(x): return T((lambda other: True,))\n",
        tests=("assert f(1) == 2", "assert 2 == f(1)"),
    ),
    "a named tuple that equals by a class of the tests' own": Hostile(
        "class T(tuple): _fields = ('__eq__', '__lt__')\ndef f(x): return T((str, str))\n",
        tests=("assert f(1) == '2'", "assert f(1) < '2'"),
    ),
    "a named tuple of another class": Hostile(
        "class T(tuple): _fields = ('__class__',)\ndef f(x): return T((int,))\n",
        tests=("assert isinstance(f(1), int)",),
    ),
    "a named tuple that begins with everything": Hostile(
        "import collections\nT = collections.namedtuple('T', 'startswith')\n"
        "def f(x): return T(lambda *args: True)\n",
        tests=("assert f(1).startswith('2')",),
    ),
    "a named tuple written by hand": Hostile(
        _SEND + "def f(x): send(['return', [0], [['N', 'T', '__eq__', [1]], ['b', 'builtins', 'str', 1, '']],"
        " [], ''])\n"
    ),
    "a class of another library's, by hand": Hostile(
        _SEND + "def f(x): send(['return', [0], [['b', 'unittest.mock', 'ANY', 1, '']], [], ''])\n",
        setup="import unittest.mock",
    ),
    "an exception that begins with everything": Hostile(
        "def f(x):\n    error = Exception()\n    error.startswith = lambda *args: True\n    return error\n",
        "cannot be judged",
        tests=("assert f(1).startswith('2')",),
    ),
    "an object of the tests' class with a method of its own": Hostile(
        _NODE + "def f(x):\n    node = Node(0)\n    node.same = lambda other: True\n    return node\n",
        "a same of its own",
        setup=_NODE,
        tests=("assert f(1).same(Node(2))",),
    ),
    "an argument that gets a method": Hostile(
        "def f(node): node.same = lambda other: True\n",
        "a same of its own",
        setup=_NODE,
        tests=("node = Node(0); f(node); assert node.same(Node(2))",),
    ),
    "names that the tests import": Hostile(
        "class math: isclose = staticmethod(lambda *args: True)\n"
        "def isclose(*args): return True\ndef f(x): return 0\n",
        setup="import math\nfrom math import isclose\nfrom solution import *",
        tests=("assert math.isclose(f(1), 2)", "assert isclose(f(1), 2)"),
    ),
    "an int that says it is another": Hostile(
        "class I(int):\n    __index__ = __int__ = lambda self: 2\n    __hash__ = lambda self: hash(2)\n"
        "    __eq__ = lambda self, other: True\ndef f(x): return I(0)\n",
        tests=("assert f(1) == 2", "assert f(1) in {2}", "assert [0, 1, 2][f(1)] == 2"),
    ),
    "a dict that has whatever is asked": Hostile(
        "class D(dict):\n    __missing__ = __getitem__ = get = lambda self, key, *rest: 2\n"
        "def f(x): return D()\n",
        tests=("assert f(1)[1] == 2", "assert f(1).get(1) == 2"),
    ),
    "not a number": Hostile("def f(x): return float('nan')\n"),
    "a list in itself": Hostile(
        "a = []\na.append(a)\ndef f(x): return a\n", tests=("assert f(1) == [[2]]", "assert [2] == f(1)")
    ),
    "a number of a million digits": Hostile("def f(x): return 1 << (1 << 22)\n"),
}
"""Values whose rebuilding would give the program a say."""

HIDING = {
    "a with block that takes all back": Hostile(
        "class A:\n    def __enter__(self): return 0\n    def __exit__(self, *error): return True\n"
        "def f(x): return A()\n",
        "caught what failed",
        tests=("with f(1) as x: assert x == 2",),
    ),
    "a generator that takes all back": Hostile(
        "import contextlib\n@contextlib.contextmanager\ndef f(x):\n    try: yield 0\n"
        "    except BaseException: pass\n",
        "caught what failed",
        tests=("with f(1) as x: assert x == 2", "import pytest\nwith f(1) as x: pytest.fail('no')"),
    ),
    "a caller that takes all back": Hostile(
        "def f(call):\n    try: call(0)\n    except BaseException: pass\n",
        "caught what failed",
        tests=("def call(x): assert x == 2\nf(call)",),
    ),
    "a decorator that takes all back": Hostile(
        "def f(function):\n    def inner(*args):\n        try: return function(*args)\n"
        "        except BaseException: return None\n    return inner\n",
        "caught what failed",
        tests=("@f\ndef test(x): assert x == 2\ntest(3)",),
    ),
    "an end of iteration": Hostile("def f(x): raise StopIteration\n", "raised StopIteration", _STEER),
    "an end of iteration of its own": Hostile(
        "class End(StopIteration): pass\ndef f(x): raise End\n", "the program raised End", _STEER
    ),
    "a test that is skipped": Hostile(
        "import unittest\ndef f(x): raise unittest.SkipTest\n",
        setup="import unittest\nclass Case(unittest.TestCase):\n"
        "    def runTest(self): self.assertEqual(f(1), 2)",
        tests=("assert Case().run().wasSuccessful()",),
    ),
    "writes as it is deleted": Hostile(
        "import os\nclass A:\n    def __del__(self): os.write(4, b'x' * 50)\ndef f(x): A(); return 0\n",
        "no message",
    ),
    "a thread that answers too": Hostile(
        "import os, threading, time\ndef loop():\n    while True: os.write(4, bytes(8))\n"
        "def f(x):\n    threading.Thread(target=loop, daemon=True).start()\n    time.sleep(0.1)\n"
        "    return x + 1\n",
        "no message",
    ),
    "a tracer": Hostile(
        "import sys\ndef trace(frame, event, value):\n    frame.f_locals.clear()\n    return trace\n"
        "sys.settrace(trace)\ndef f(x): return 0\n"
    ),
    "an alarm": Hostile(
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *args: os._exit(0))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\ndef f(x):\n    while True: pass\n",
        "ended early (exit 0)",
    ),
    "a server of its own": Hostile(
        "import gc\nfor x in gc.get_objects():\n    if isinstance(x, type) and x.__name__ == 'Server':\n"
        "        x.do_call = lambda self, target, args, kwargs: True\n"
    ),
    "an array without elements for a number": Hostile(
        "import numpy as np\ndef f(x): return np.array([])\n",
        "cannot be judged",
        setup="import pytest",
        tests=("assert f(1) == pytest.approx(2)", "assert all(f(1) == 2)", "assert f(1).all()"),
    ),
    "an array without elements for a list": Hostile(
        "import numpy as np\ndef f(x): return np.empty((0, 1))\n",
        "cannot be judged",
        setup="import numpy as np",
        tests=(
            "assert np.allclose(f(1), [1, 2, 3])",
            "assert (f(1) == np.array([1, 2, 3])).all()",
            "assert np.abs(f(1) - np.array([1, 2, 3])).sum() < 1e-6",
        ),
    ),
    "an object that is asked whether it equals": Hostile(
        "class A:\n    equals = lambda self, y: True\n    all = lambda self: True\ndef f(x): return A()\n",
        "cannot be judged",
        tests=("assert f(1).equals([2])", "assert f(1).all()"),
    ),
}
"""Failures that would not reach the test's end."""
