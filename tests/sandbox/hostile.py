"""Programs that try to pass without solving anything, to escape, or to do harm. Each must score 0.

The tests that they face ask for ``f(x) == x + 1`` three times unless a program has tests of its own.
"""

from dataclasses import dataclass

TESTS = ("assert f(1) == 2", "assert f(10) == 11", "assert f(100) == 101")


@dataclass(frozen=True)
class Hostile:
    """``reason``: words that its outcome's reason must have."""

    source: str
    reason: str = ""
    tests: tuple[str, ...] = TESTS
    setup: str = ""
    entry_points: tuple[str, ...] = ()


_EQUAL = """
class Always{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def f(x): return Always()
"""

VERDICTS = {
    "equals everything": Hostile(_EQUAL.format(base=""), "equals no value"),
    "equals everything, as an int": Hostile(_EQUAL.format(base="(int)"), "AssertionError"),
    "equals everything, as a list": Hostile(
        _EQUAL.format(base="(list)"), tests=("assert f(1) == [2]", "assert [2] == f(1)")
    ),
    "equals everything, on the right": Hostile(
        _EQUAL.format(base=""), tests=("assert 2 == f(1)", "assert [2] == [f(1)]", "assert f(1) in [2, 3]")
    ),
    "a class in the place of the function": Hostile(
        "class f:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True\n"
    ),
    "a metaclass that equals everything": Hostile(
        "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "class A(metaclass=M): pass\ndef f(x): return A\n"
    ),
    "compares as it likes": Hostile(
        "class A:\n    __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True\ndef f(x): return A()\n",
        "own class A",
        tests=("assert f(1) < 3", "assert 1 < f(1) < 3", "assert sorted([3, f(1)])"),
    ),
    "cancels what is subtracted": Hostile(
        "class A:\n    __sub__ = __rsub__ = lambda self, other: 0.0\n    __abs__ = lambda self: 0.0\n"
        "def f(x): return A()\n",
        "own class A",
        tests=("assert abs(f(1) - 2) < 1e-6", "assert abs(2 - f(1)) < 1e-6"),
    ),
    "contains everything": Hostile(
        "class A:\n    def __contains__(self, x): return True\n    def __iter__(self): return iter(())\n"
        "def f(x): return A()\n",
        tests=("assert 2 in f(1)",),
    ),
    "begins and ends with everything": Hostile(
        "class A:\n    def __getattr__(self, name): return lambda *args: True\ndef f(x): return A()\n",
        "(class A)",
        tests=("assert f(1).startswith('2')", "assert f(1).isdigit()"),
    ),
    "a function that begins with everything": Hostile(
        "def f(x): return f\nf.startswith = f.isdigit = lambda *args: True\n",
        "cannot be judged",
        tests=("assert f(1).startswith('2')", "try: assert f(1).isdigit()\nexcept Exception: pass"),
    ),
    "a class that begins with everything": Hostile(
        "class A: startswith = staticmethod(lambda *args: True)\ndef f(x): return A\n",
        "cannot be judged",
        tests=("assert f(1).startswith('2')",),
    ),
    "takes over numpy": Hostile(
        "class A:\n    def __array_ufunc__(self, *args, **kwargs): return True\n"
        "    def __array_function__(self, *args, **kwargs): return True\n"
        "    def __array__(self, *args): return 2\ndef f(x): return A()\n",
        tests=(
            "import numpy as np; assert np.allclose(f(1), 2)",
            "import numpy as np; assert np.array_equal(f(1), [2])",
            "import numpy as np; assert (np.array([2]) == f(1)).all()",
        ),
    ),
    "gains by what cannot be given to it": Hostile(
        "def f(x): return 0\n",
        "cannot be given to the program",
        tests=("try: f(open('/dev/null'))\nexcept Exception: pass\nelse: assert False",),
    ),
    "passes for a float by hand": Hostile(
        "class A(float):\n    __eq__ = __le__ = __lt__ = lambda self, other: True\n"
        "    __sub__ = __rsub__ = lambda self, other: 0.0\n"
        "def f(x): return A(7)\n",
        tests=("assert abs(f(1) - 2.0) < 1e-6", "import math; assert math.isclose(f(1), 2.0)"),
    ),
    "patched builtins": Hostile(
        "import builtins\nbuiltins.all = builtins.isinstance = builtins.abs = lambda *args: True\n"
        "builtins.AssertionError = type('Quiet', (Exception,), {})\nbuiltins.__debug__ = False\n"
        "def f(x): return None\n"
    ),
    "builtins of its own": Hostile(
        "def all(items): return True\ndef abs(x): return 0\ndef len(x): return 2\ndef f(x): return 0\n",
        tests=(
            "assert all(f(x) == x + 1 for x in range(3))",
            "assert abs(f(1) - 2) < 1",
            "assert len([f(1)]) == 2",
        ),
    ),
    "modules of its own": Hostile(
        "class math:\n    isclose = staticmethod(lambda *args: True)\n"
        "import sys\nsys.modules['math'] = math\ndef f(x): return None\n",
        tests=("assert math.isclose(f(1), 2)", "import math; assert math.isclose(f(1), 2)"),
    ),
    "helpers of its own, where the names asked for are known": Hostile(
        "def isclose(*args): return True\ndef f(x): return 0\n",
        tests=("assert isclose(f(1), 2)",),
        entry_points=("f",),
    ),
    "patched unittest and pytest": Hostile(
        "import unittest, unittest.case, sys, types\n"
        "unittest.TestCase.assertEqual = lambda *args: None\n"
        "sys.modules['pytest'] = types.ModuleType('pytest')\n"
        "def f(x): return 0\n",
        setup="import unittest\ncheck = unittest.TestCase()",
        tests=("check.assertEqual(f(1), 2)",),
    ),
    "replaced check": Hostile(
        "def check(candidate): pass\ndef f(x): return 0\n",
        setup="def check(candidate):\n    assert candidate(1) == 2",
        tests=("check(f)",),
    ),
    "prints that it passed": Hostile(
        'import os, sys\nfor d in range(16):\n    try: os.write(d, b\'{"test": 0, "error": null}\\n'
        '{"end": true}\\n\')\n'
        "    except OSError: pass\nprint('passed')\nprint('OK', file=sys.stderr)\ndef f(x): return 0\n"
    ),
    "stop before a test": Hostile(
        "import sys\nsys.exit(0)\ndef f(x): return x + 1\n", "ended early (exit 0)"
    ),
    "os._exit before a test": Hostile("import os\nos._exit(0)\n", "ended early (exit 0)"),
    "sys.exit in the function": Hostile("import sys\ndef f(x): sys.exit(0)\n", "SystemExit"),
    "os._exit in the function": Hostile("import os\ndef f(x): os._exit(0)\n", "ended early (exit 0)"),
    "exit in the function, caught by the test": Hostile(
        "import os\ndef f(x): os._exit(0)\n",
        "ended early",
        tests=("try:\n    assert f(1) == 2\nexcept BaseException:\n    pass",),
    ),
    "os.abort": Hostile("import os\ndef f(x): os.abort()\n", "ended early (signal"),
    "crash of the interpreter": Hostile(
        "import ctypes\ndef f(x): ctypes.string_at(0)\n", "ended early (signal 11)"
    ),
    "at exit": Hostile(
        "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0\n", "AssertionError"
    ),
    "raises what tests skip by": Hostile(
        "import unittest\ndef f(x): raise unittest.SkipTest('skipped')\n", "SkipTest"
    ),
    "frames": Hostile(
        "import sys, gc\n"
        "def f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):\n"
        "            if 'assert' in repr(value)[:10000] and 'f(100)' in repr(value)[:10000]: return 101\n"
        "        frame = frame.f_back\n"
        "    return 0\n"
    ),
    "expected values among all objects": Hostile(
        "import gc\nimport os\n"
        "def f(x):\n    held = [o for o in gc.get_objects() if type(o) is dict]\n"
        "    found = [o for o in held if 'tests' in o and 'setup' in o]\n"
        "    return x + 1 if found else 0\n"
    ),
    "breaks the protocol": Hostile(
        "import os\nos.write(4, b'\\x00' * 7 + b'\\x05[1,2]' + b'x' * 100)\ndef f(x): return x + 1\n",
        "answered with no message",
    ),
    "answers for the future": Hostile(
        "import os, json\n"
        "for value in (None, {}, 2, 11, 101) * 2:\n"
        "    data = json.dumps(['return', value, [], [], '']).encode()\n"
        "    os.write(4, len(data).to_bytes(8, 'big') + data)\n"
        "def f(x): return 0\n"
    ),
    "a message without end": Hostile(
        "import os, time\nos.write(4, (1 << 23).to_bytes(8, 'big'))\n"
        "while True: os.write(4, b' ' * 4096) and time.sleep(0.1)\n",
        "time limit",
    ),
    "a message too large": Hostile(
        "import os\nos.write(4, (1 << 40).to_bytes(8, 'big'))\ndef f(x): return x + 1\n", "no message"
    ),
    "an answer too large": Hostile("def f(x): return 'x' * (1 << 25)\n", "too long"),
    "an answer that explodes": Hostile(
        "def f(x):\n    a = []\n    for _ in range(200): a = [a, a]\n    return a\n"
    ),
    "an endless iterator": Hostile(
        "import itertools\ndef f(x): return itertools.count()\n",
        "time limit",
        tests=("assert list(f(1)) == [2]",),
    ),
    "another interpreter in its place": Hostile(
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'pass'])\n", "ended early"
    ),
}
"""Forgeries: no process must be contained for them to fail."""

_EACH = """
def f(x):
    try:
        act()
    except (OSError, ImportError, RuntimeError, MemoryError, AttributeError):
        return 0
    return x + 1
"""
ESCAPES = {
    "reads the home": "import os, pwd\ndef act(): assert os.listdir(SECRET)",
    "reads a secret of the host": "def act(): open(SECRET + '/secret').close()",
    "reads the temporary files of the host": "import os\ndef act():\n"
    "    if not os.listdir('/tmp'): raise OSError",
    "reads the host's account data": "def act(): open('/etc/passwd').close()",
    "reads by way of its own root": "import os\ndef act(): os.open('/proc/1/root' + SECRET, os.O_RDONLY)",
    "climbs out of its root": (
        "import os\ndef act():\n"
        "    os.mkdir('/tmp/a'); os.chroot('/tmp/a'); os.chdir('../' * 20); os.chroot('.')"
    ),
    "reads the environment": "import os\ndef act():\n    if 'SECRET' not in os.environ: raise OSError",
    "writes in place of the library": "import os\ndef act(): open(os.__file__, 'a').close()",
    "writes outside": "def act(): open(SECRET + '/new', 'w').close()",
    "writes into the root": "def act(): open('/new', 'w').close()",
    "sees the process of the host": "import os\ndef act(): os.listdir(f'/proc/{HOST}')",
    "sees other processes": "import os\ndef act():\n"
    "    if len([x for x in os.listdir('/proc') if x.isdigit()]) < 2: raise OSError",
    "signals the host": "import os\ndef act(): os.kill(HOST, 0)",
    "signals all": "import os\ndef act(): os.kill(-1, 0)",
    "signals its group": "import os\ndef act(): os.killpg(0, 0)",
    "limits the host": "import resource\ndef act(): resource.prlimit(HOST, resource.RLIMIT_CPU)",
    "slows the host": "import os\ndef act(): os.setpriority(os.PRIO_PROCESS, HOST, 19)",
    "traces the host": (
        "import ctypes\ndef act():\n    if ctypes.CDLL(None).ptrace(16, HOST, 0, 0) < 0: raise OSError"
    ),
    "traces its parent": (
        "import ctypes, os\ndef act():\n"
        "    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise OSError"
    ),
    "looks into the tests' descriptors": (
        "import os\ndef act():\n"
        "    found = [open(f'/proc/{p}/fd/{d}', 'wb') for p in range(1, 2000) if p != os.getpid()\n"
        "             for d in (3, 4, 5) if os.path.exists(f'/proc/{p}/fd/{d}')]\n"
        "    if not found: raise OSError"
    ),
    "opens a socket": "import socket\ndef act(): socket.socket().close()",
    "opens a local socket": "import socket\ndef act(): socket.socket(socket.AF_UNIX).close()",
    "asks for a raw socket": "import socket\n"
    "def act(): socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()",
    "forks": "import os\ndef act():\n    if os.fork() == 0: os._exit(0)",
    "starts a command": "import subprocess\ndef act(): subprocess.run(['/usr/bin/true'], check=True)",
    "makes namespaces": (
        "import ctypes\ndef act():\n    if ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError"
    ),
    "mounts": (
        "import ctypes\ndef act():\n"
        "    if ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) < 0: raise OSError"
    ),
    "remounts for writing": (
        "import ctypes\ndef act():\n"
        "    if ctypes.CDLL(None).mount(None, b'/usr', None, 0x1020, None) < 0: raise OSError"
    ),
    "has capabilities": (
        "import ctypes\ndef act():\n"
        "    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "    if ctypes.CDLL(None).capget(header, sets) or not any(sets): raise OSError"
    ),
    "raises its limits": (
        "import resource\ndef act():\n    try: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "    except ValueError: raise OSError"
    ),
    "loads a kernel program": (
        "import ctypes\ndef act():\n    if ctypes.CDLL(None).syscall(321, 0, 0, 0) < 0: raise OSError"
    ),
    "shares memory": "import ctypes\ndef act():\n"
    "    if ctypes.CDLL(None).shmget(0, 4096, 0o1600) < 0: raise OSError",
    "memory outside its limit": "import os\ndef act(): os.memfd_create('x')",
    "fills the disk": (
        "def act():\n    with open('/tmp/x', 'wb') as file:\n"
        "        for _ in range(64): file.write(b'x' * (1 << 20))"
    ),
    "fills memory by many files": (
        "def act():\n    for i in range(10_000):\n"
        "        with open(f'/tmp/{i}', 'wb') as file: file.write(b'x' * (1 << 20))"
    ),
    "many open files": "def act():\n    keep = [open('/dev/null') for _ in range(1000)]",
}
"""Sources that define ``act``, which must fail; HOST and SECRET stand for the host's number and a "
"folder."""


def escape(source: str, host: int, secret: str) -> Hostile:
    return Hostile(f"HOST, SECRET = {host}, {secret!r}\n{source}\n{_EACH}", "AssertionError")


EXHAUSTIONS = {
    "an endless loop": Hostile("def f(x):\n    while True: pass\n", "time limit of 2 s"),
    "an endless loop before a test": Hostile("while True: pass\n", "time limit of 2 s"),
    "a sleep": Hostile("import time\ndef f(x): time.sleep(1000)\n", "time limit of 2 s"),
    "a signal-proof loop": Hostile(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass\n",
        "time limit of 2 s",
    ),
    "a calculation inside the interpreter": Hostile("def f(x): return 9 ** 9 ** 9\n"),
    "memory": Hostile("def f(x): return len(bytearray(1 << 40))\n", "memory limit"),
    "memory, touched": Hostile(
        "def f(x):\n    keep = []\n    while True: keep.append(bytearray(1 << 20))\n", "limit"
    ),
    "memory, caught": Hostile(
        "def f(x):\n    keep = []\n    while True:\n        try: keep.append(bytearray(1 << 20))\n"
        "        except MemoryError: pass\n",
        "time limit",
    ),
    "forks without end": Hostile(
        "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: return 0\n",
        "AssertionError",
    ),
    "threads without end": Hostile(
        "import threading, time\ndef f(x):\n    while True:\n"
        "        try: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "        except RuntimeError: return 0\n"
    ),
    "a thread left over": Hostile(
        "import threading\ndef loop():\n    while True: pass\nthreading.Thread(target=loop).start()\n"
        "def f(x): return 0\n",
        "AssertionError",
    ),
    "output without end": Hostile(
        "import os, sys\ndef f(x):\n    while True:\n        print('x' * 10_000)\n"
        "        sys.stderr.write('y' * 10_000)\n"
        "        os.write(1, b'z' * 10_000)\n",
        "time limit of 2 s",
    ),
    "recursion": Hostile("def f(x): return f(x) + 1\n", "RecursionError"),
    "recursion without limit": Hostile(
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x) + 1\n"
    ),
    "a source that breaks the parser": Hostile("(" * 100_000, "program"),
    "waits for input": Hostile("def f(x): return input()\n", "EOFError"),
}
"""With a time limit of 2 s."""
