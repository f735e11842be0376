"""The process of the program: runs it and answers calls of its functions, methods and operators.

Nothing in this process is trusted once the program runs, this file's objects included: the other side reads
its messages as data and believes none of them further than the tests do.
"""

import collections
import copy
import enum
import importlib
import io
import math
import operator
import sys
import threading
import time
import types

from egspo.sandbox.guest import arrays
from egspo.sandbox.guest.graph import MUTABLE, Decoder, Encoder, attributes
from egspo.sandbox.guest.wire import Ended, Wire

PRINTED = 1 << 16
"""Characters of its output that a program can show to a test; what exceeds them is dropped."""
_DUNDERS = """
 call len iter next getitem setitem delitem contains reversed enter exit bool int float index complex
hash eq lt le gt ge add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow
matmul rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert round floor
ceil trunc iadd isub imul
"""
DUNDERS = tuple(f"__{name}__" for name in _DUNDERS.split())
"""Special methods that the stand-in of an object has if its class has them."""
_BASES = (str, bytes, bytearray, int, float, complex, tuple, list, dict, set, frozenset, collections.deque)
_CALLS = (
    len, iter, next, str, repr, bool, hash, int, float, complex, abs, round, format, reversed, divmod, dir,
    isinstance, issubclass, copy.copy, copy.deepcopy, math.floor, math.ceil, math.trunc,
)  # fmt: skip
_OPERATIONS = {function.__name__: function for function in _CALLS}
_STEPS_ALONE = 16
"""Items of an iterator that are fetched one by one; those that follow, several at a time."""
_STEPS_TOGETHER = 64
_STEPS_SECONDS = 0.005


class Caller:
    """A callable of the tests, called from here."""

    def __init__(self, server: "Server", number: int, name: str):
        self.__server, self.__number, self.__name__ = server, number, name

    def __call__(self, *args, **kwargs):
        return self.__server.call_back(self.__number, args, kwargs)

    def _number(self) -> int:
        return self.__number


class Plain:
    """Asks for the plain part of an instance of a class derived from a builtin."""

    def __init__(self, whole: object):
        self.whole = whole


class Described:
    """Asks for a class as the program has it, be it of the standard library."""

    def __init__(self, kind: type):
        self.kind = kind


class Printed(io.StringIO):
    """Keeps the beginning of what is printed until it is taken."""

    def write(self, text: str) -> int:
        room = PRINTED - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


class Server:
    """Answers the requests of the tests, in their order."""

    def __init__(self, wire: Wire):
        self.wire = wire
        self.module = types.ModuleType("solution")
        self.names = self.module.__dict__
        self.numbers: dict[int, int] = {}
        self.held: list = []
        self.steps: dict[int, int] = {}
        self.value_classes: set[str] = set()
        self.stubs: dict[str, type] = {}
        self.described: dict[type, Described] = {}
        self.given: dict[str, object] = {}
        self.whole: object = None
        self.lock = threading.RLock()
        self.printed = Printed()

    def serve(self) -> None:
        sys.modules["solution"] = self.module
        sys.stdout, sys.stderr = self.printed, Printed()
        self.wire.send(["hello"])
        while True:
            self.answer(self.wire.receive(largest=1 << 40))

    def answer(self, message: list) -> None:
        name, roots, nodes = message
        decoder = Decoder(self.decode, nodes)
        try:
            arguments = decoder.build(roots)
            kind, result = "return", getattr(self, "do_" + name)(*arguments)
        except Ended:
            raise
        except BaseException as error:
            kind, result = "raise", error
        encoder = Encoder(self.encode, decoder.objects)
        root = encoder.value(result)
        nodes_after = encoder.finish()
        updates = []
        for k, node in enumerate(nodes):
            if node[0] in MUTABLE:
                now = encoder.node(decoder.objects[k])
                if now != node:
                    updates.append([k, now])
        encoder.finish()
        self.wire.send([kind, root, nodes_after, updates, self.printed.take()])
        self.whole = None

    def call_back(self, number: int, args: tuple, kwargs: dict) -> object:
        """Calls a function of the tests, which wait for an answer meanwhile and may call in between."""
        with self.lock:
            encoder = Encoder(self.encode)
            roots = encoder.values((number, args, kwargs))
            self.wire.send(["call", roots, encoder.finish()])
            while True:
                message = self.wire.receive(largest=1 << 40)
                if message[0] not in ("return", "raise"):
                    self.answer(message)
                    continue
                kind, root, nodes = message
                (value,) = Decoder(self.decode, nodes, encoder.objects).build([root])
                if kind == "raise":
                    raise value
                return value

    # Requests.

    def do_load(self, preamble: str, source: str) -> None:
        exec(compile(preamble, "preamble", "exec", dont_inherit=True), self.names)
        self.given = dict(self.names)
        exec(compile(source, "solution.py", "exec", dont_inherit=True), self.names)

    def do_names(self) -> dict:
        """Names that the program itself bound, and whether to a function or class of its own."""
        given, nothing = self.given, object()
        return {
            name: callable(x) and getattr(x, "__module__", None) == self.module.__name__
            for name, x in self.names.items()
            if not name.startswith("__") and given.get(name, nothing) is not x
        }

    def do_values(self, names: list[str]) -> dict:
        return {name: self.names[name] for name in names}

    def do_name(self, name: str) -> object:
        return self.names[name]

    def do_classes(self, names: list[str]) -> None:
        self.value_classes = set(names)

    def do_call(self, target: int, args: tuple, kwargs: dict) -> object:
        function = self.held[target]
        result = function(*args, **kwargs)
        if isinstance(function, type):
            self.whole = result
        return result

    def do_method(self, target: int, name: str, args: tuple, kwargs: dict) -> object:
        return getattr(self.held[target], name)(*args, **kwargs)

    def do_getattr(self, target: int, name: str) -> object:
        return getattr(self.held[target], name)

    def do_is_method(self, target: int, name: str) -> bool:
        """Whether a class has a method of that name, so that it can be called in one go."""
        return callable(getattr(self.held[target], name, None))

    def do_setattr(self, target: int, name: str, value: object) -> None:
        setattr(self.held[target], name, value)

    def do_delattr(self, target: int, name: str) -> None:
        delattr(self.held[target], name)

    def do_operate(self, name: str, args: tuple) -> object:
        result = (_OPERATIONS.get(name) or getattr(operator, name))(*args)
        if type(result) is type(args[0]):
            self.whole = result
        return result

    def do_plain(self, x: object) -> object:
        return Plain(x)

    def do_step(self, target: int, sent: object) -> tuple[list, bool, object]:
        """(items, whether that is the end, value or exception that ends it) of a held iterator."""
        iterator, items = self.held[target], []
        taken = self.steps[target] = self.steps.get(target, 0) + 1
        most = 1 if taken <= _STEPS_ALONE or sent is not None else _STEPS_TOGETHER
        until = time.monotonic() + _STEPS_SECONDS
        try:
            while len(items) < most and (not items or time.monotonic() < until):
                items.append(next(iterator) if sent is None else iterator.send(sent))
        except StopIteration as end:
            return items, True, end.value
        except Exception as error:
            if not items:
                raise
            return items, True, error
        return items, False, None

    def do_run(self, target: int) -> object:
        import asyncio

        async def awaited():
            return await self.held[target]

        return asyncio.run(awaited())

    # What is no plain data.

    def hold(self, x: object) -> int:
        number = self.numbers.get(id(x))
        if number is None:
            number = self.numbers[id(x)] = len(self.held)
            self.held.append(x)
        return number

    def encode(self, x: object, encoder: Encoder) -> list:
        kind = type(x)
        if kind is Caller:
            return ["p", x._number()]
        if kind is Plain:
            return encoder.plain(x.whole) or ["=", None]
        if kind is Described:
            return self.describe(x.kind, encoder)
        if isinstance(x, type):
            return self.encode_class(x, encoder)
        if isinstance(x, types.ModuleType):
            return ["m", x.__name__]
        if isinstance(x, BaseException):
            own = vars(x).items()
            return ["e", *encoder.values((kind, str(x), x.args)), *encoder.pairs(own)]
        if isinstance(x, types.GeneratorType | types.CoroutineType):
            return ["g" if isinstance(x, types.GeneratorType) else "w", self.hold(x)]
        if isinstance(x, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
            return ["F_", self.hold(x), x.__module__, getattr(x, "__qualname__", "")]
        if kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__"):
            return ["g", self.hold(x)]
        return self.encode_instance(x, kind, encoder)

    def encode_instance(self, x: object, kind: type, encoder: Encoder) -> list:
        if kind.__name__ in self.value_classes or kind in self.stubs.values():
            return ["i", kind.__name__, *encoder.pairs(attributes(x))]
        if x is not self.whole and not isinstance(x, enum.Enum):
            views = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}
            if kind.__name__ in views:
                return ["v", views[kind.__name__], *encoder.values(x)]
            if isinstance(x, tuple) and hasattr(kind, "_fields"):
                return ["N", kind.__name__, ",".join(kind._fields), *encoder.values(tuple.__iter__(x))]
            if kind.__module__ == "numpy":
                return arrays.encode(x, encoder)
            plain = encoder.plain(x)
            if plain is not None:
                return plain
        return ["h", self.hold(x), encoder.value(self.described.setdefault(kind, Described(kind)))]

    def encode_class(self, x: type, encoder: Encoder) -> list:
        module = str(getattr(x, "__module__", ""))
        if module.partition(".")[0] in sys.stdlib_module_names:
            errors = [k.__name__ for k in x.__mro__ if k.__module__ == "builtins" and k is not object]
            return ["b", module, x.__qualname__, self.hold(x), errors[0] if errors else ""]
        return self.describe(x, encoder)

    def describe(self, x: type, encoder: Encoder) -> list:
        dunders = ",".join(name for name in DUNDERS if _defines(x, name))
        base = next((kind.__name__ for kind in _BASES if issubclass(x, kind)), "")
        return ["K", self.hold(x), x.__name__, dunders, base, *encoder.values(x.__mro__[1:-1])]

    def decode(self, node: list, decoder: Decoder) -> object:
        tag, *parts = node
        if tag == "h":
            return self.held[parts[0]]
        if tag == "p":
            return Caller(self, parts[0], parts[1])
        if tag == "b":
            found = importlib.import_module(parts[0])
            for name in parts[1].split("."):
                found = getattr(found, name)
            return found
        if tag == "i":
            return self.new_instance(parts[0])
        if tag == "e":
            kind, args = decoder.values(parts)
            return kind(*args)
        if tag == "o":
            return object()
        if tag == "G":
            return iter(decoder.values(parts))
        if tag == "a":
            return arrays.decode(parts)
        if tag == "N":
            return collections.namedtuple(parts[0], parts[1].split(","))(*decoder.values(parts[2:]))
        raise TypeError(f"node {tag!r}")

    def new_instance(self, name: str) -> object:
        kind = self.names.get(name)
        if not isinstance(kind, type):
            kind = self.stubs.setdefault(name, type(name, (), {}))
        return object.__new__(kind)


def _defines(kind: type, name: str) -> bool:
    found = getattr(kind, name, None)
    return found is not None and found is not getattr(object, name, None)


def main(reading: int, writing: int) -> None:
    """Serves until the tests end."""
    server = Server(Wire(reading, writing))
    sys.path[:] = [*sys.path, *server.wire.receive(1 << 40)]
    try:
        server.serve()
    except Ended:
        return
