"""The tests' end of the line to the program: requests, answers, and values rebuilt from what it sends."""

import collections
import io
import itertools
import sys
import threading
import types
import weakref

from egspo.sandbox.guest import arrays, guards, handles
from egspo.sandbox.guest.graph import MUTABLE, Decoder, Encoder, attributes
from egspo.sandbox.guest.wire import Ended, Wire, WireError

TESTS = "tests"
"""Module of the classes that preamble, set-up and tests define."""
MOST_ITEMS = 100_000
"""Items of an iterator that is given to the program."""
_MALFORMED = (
    WireError, TypeError, ValueError, KeyError, IndexError, AttributeError, MemoryError, RecursionError
)  # fmt: skip


class Gone(BaseException):
    """The program's process answers no more, or not in messages; no test passes from here on."""


class Connection:
    """Calls into the program, one at a time.

    ``classes()`` gives the classes by name that objects of the program are rebuilt in.
    """

    def __init__(self, wire: Wire, classes):
        self.wire, self.classes = wire, classes
        self.lock = threading.RLock()
        self.broken = ""
        self.notes: list[str] = []
        self.hidden: list[str] = []
        self.raised: BaseException | None = None
        self.stops = False
        self.functions: list = []
        self.function_numbers: dict[int, int] = {}
        self.known: dict[int, type] = {}
        self.objects: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        self.iterators: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.streams: dict[int, object] = {}
        self.sent_classes: dict[str, type] = {}

    def request(self, name: str, *arguments: object) -> object:
        """The program's answer.

        Raises:
            Gone: if it gives none, now and ever after.
            Exception: what the program raised.
        """
        with self.lock:
            encoder = Encoder(self.encode)
            roots = encoder.values(arguments)
            nodes = encoder.finish()
            self.send([name, roots, nodes])
            while True:
                message = self.receive()
                if message[0] == "call":
                    self.serve(message)
                else:
                    return self.take(message, encoder.objects, nodes)

    def take(self, message: list, objects: list, asked: list) -> object:
        """The value of an answer to a request, whose objects change as the program changed them."""
        try:
            kind, root, nodes, updates, printed = message
            decoder = Decoder(self.decode, nodes, objects)
            (value,) = decoder.build([root])
            for k, node in updates:
                asked_tag = asked[k][0] if type(k) is int and 0 <= k < len(asked) else None
                if asked_tag != node[0] or asked_tag not in MUTABLE:
                    raise WireError("an update of what cannot change")
                if node[0] == "i":
                    guards.check_attributes(type(objects[k]), node[2::2])
                decoder.update(k, node)
            if type(printed) is not str or kind not in ("return", "raise"):
                raise WireError("no answer")
            if kind == "raise" and not isinstance(value, BaseException):
                raise WireError("raised what is no exception")
        except _MALFORMED as error:
            self.fail("answered with no message", error)
        if printed:
            sys.stdout.write(printed)
        if kind == "return":
            return value
        steers = guards.steers(value) and not self.stops
        self.raised = RuntimeError(f"the program raised {type(value).__name__}") if steers else value
        raise self.raised

    def serve(self, message: list) -> None:
        """Calls a function of the tests for the program."""
        try:
            _, roots, nodes = message
            decoder = Decoder(self.decode, nodes)
            number, args, kwargs = decoder.build(roots)
            function = self.functions[number]
        except _MALFORMED as error:
            self.fail("called no function of the tests", error)
        try:
            kind, value = "return", function(*args, **kwargs)
        except Exception as error:
            kind, value = "raise", error
            self.hide(error, "a function that the tests gave it")
        encoder = Encoder(self.encode, decoder.objects)
        root = encoder.value(value)
        self.send([kind, root, encoder.finish()])

    def send(self, message: list) -> None:
        if self.broken:
            raise Gone(self.broken)
        try:
            self.wire.send(message)
        except Ended as error:
            self.fail("ended early", error)

    def receive(self) -> list:
        try:
            message = self.wire.receive()
            if type(message) is not list or not message:
                raise WireError("no list")
            return message
        except Ended as error:
            self.fail("ended early", error)
        except (WireError, MemoryError) as error:
            self.fail("answered with no message, or one too long", error)

    def fail(self, why: str, error: BaseException) -> None:
        self.broken = why
        raise Gone(why) from error

    def hide(self, error: BaseException | None, where: str) -> None:
        """Takes down that the test that runs has failed, though the program may keep that from it."""
        if guards.judges(error) and error is not self.raised:
            self.hidden.append(f"the program caught what failed in {where}")

    def leave(self, handle, error: tuple) -> bool:
        """Leaves a ``with`` block over an object of the program; whether that takes the error back."""
        kind, raised, _ = error or (None, None, None)
        # The traceback stays here, and an exception goes over as its kind only.
        if taken := bool(self.request("method", handle._number, "__exit__", (kind, raised, None), {})):
            self.hide(raised, "a with block of the tests")
        return taken

    def text(self, name: str, *args) -> str:
        return result if isinstance(result := self.request("operate", name, args), str) else repr(result)

    def iterator(self, handle) -> object:
        """The stream of a held object that is its own iterator; one a handle, until it has ended."""
        found = self.streams.get(handle._number)
        if found is None or found.gi_frame is None:
            found = self.streams[handle._number] = self.stream(handle._number)
        return found

    def stream(self, number: int):
        """A generator over the items of an iterator of the program."""
        sent = None
        while True:
            items, ended, last = self.request("step", number, sent)
            for item in items:
                sent = yield item
            if ended:
                if isinstance(last, BaseException):
                    raise last
                return last

    async def coroutine(self, number: int) -> object:
        return self.request("run", number)

    # What is no plain data, on its way to the program.

    def encode(self, x: object, encoder: Encoder) -> list:
        kind = type(x)
        if isinstance(x, handles.Proxy):
            return ["h", x._class_number]
        if isinstance(x, handles.Handle | handles.Function):
            return ["h", x._number]
        number = self.iterators.get(x) if isinstance(x, types.GeneratorType) else None
        if number is not None:
            return ["h", number]
        if isinstance(x, BaseException):
            base = next(k for k in kind.__mro__ if k.__module__ == "builtins")
            return ["e", *encoder.values((base, x.args))]
        where = _importable(x)
        if where is not None:
            return ["b", *where]
        if hasattr(kind, "__next__") and not isinstance(x, io.IOBase):
            return ["G", *encoder.values(itertools.islice(x, MOST_ITEMS))]
        if isinstance(x, tuple) and hasattr(kind, "_fields"):
            return ["N", kind.__name__, ",".join(kind._fields), *encoder.values(x)]
        plain = encoder.plain(x)
        if plain is not None:
            return plain
        if callable(x):
            return ["p", self.function(x), getattr(x, "__name__", "function")]
        return self.encode_instance(x, kind, encoder)

    def encode_instance(self, x: object, kind: type, encoder: Encoder) -> list:
        if kind is object:
            return ["o"]
        if kind.__module__ == "numpy" and hasattr(x, "dtype"):
            return arrays.encode(x, encoder)
        if isinstance(x, collections.abc.KeysView | collections.abc.ValuesView | collections.abc.ItemsView):
            return ["l", *encoder.values(x)]
        if kind.__module__ == TESTS and isinstance(kind, type):
            self.sent_classes[kind.__name__] = kind
            return ["i", kind.__name__, *encoder.pairs(attributes(x))]
        raise guards.Unjudgeable(f"an object of class {kind.__name__} cannot be given to the program")

    def function(self, x: object) -> int:
        if id(x) not in self.function_numbers:
            self.function_numbers[id(x)] = len(self.functions)
            self.functions.append(x)
        return self.function_numbers[id(x)]

    # What is no plain data, on its way from the program.

    def decode(self, node: list, decoder: Decoder) -> object:
        maker = _MAKERS.get(node[0])
        if maker is None:
            raise WireError(f"node {node[0]!r}")
        return maker(self, node[1:], decoder)

    def make_instance(self, parts: list, decoder: Decoder) -> object:
        kind = self.classes().get(parts[0]) or self.sent_classes.get(parts[0])
        if kind is None:
            raise WireError(f"an object of an unknown class {parts[0]!r}")
        guards.check_attributes(kind, parts[1::2])
        return object.__new__(kind)

    def make_class(self, parts: list, decoder: Decoder) -> object:
        number, name, dunders, base = parts[:4]
        if number not in self.known:
            mro = [kind for kind in decoder.values(parts[4:]) if isinstance(kind, type)]
            error = next((kind for kind in mro if issubclass(kind, BaseException)), None)
            if type(name) is not str or type(base) is not str:
                raise WireError("a class without a name")
            self.known[number] = (
                handles.make_class(self, number, name, dunders.split(","), base, mro)
                if error is None
                else type(name, (error,), {"__module__": "solution", "_number": number})
            )
        return self.known[number]

    def make_handle(self, parts: list, decoder: Decoder) -> object:
        number, kind = parts[0], decoder.value(parts[1])
        if not isinstance(kind, handles.Proxy):
            kind = handles.make_class(self, -1, getattr(kind, "__name__", "object"), [], "", [])
        found = self.objects.get(number)
        if found is None or type(found) is not kind:
            found = self.objects[number] = handles.make_handle(kind, number)
        return found

    def make_exception(self, parts: list, decoder: Decoder) -> BaseException:
        kind, text, args = decoder.values(parts[:3])
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            kind = RuntimeError
        args = args if type(args) is tuple else ()
        try:
            made = kind(*args) if kind.__module__ == "builtins" else kind.__new__(kind)
        except TypeError:
            made = kind.__new__(kind)
        guards.check_attributes(kind, parts[3::2])
        vars(made).update(zip(parts[3::2], decoder.values(parts[4::2]), strict=True))
        made.args = args or ((text,) if kind.__module__ == "solution" and text else ())
        return made

    def make_stream(self, parts: list, decoder: Decoder) -> object:
        stream = self.stream(parts[0])
        self.iterators[stream] = parts[0]
        return stream


def _importable(x: object) -> tuple[str, str] | None:
    """(module, name) of a class or function of the standard library."""
    if not isinstance(x, type | types.FunctionType | types.BuiltinFunctionType):
        return None
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", "")
    if module not in sys.stdlib_module_names and (module or "").partition(".")[0] not in guards.TRUSTED:
        return None
    return (module, name) if find(module, name) is x else None


def find(module: str, name: str) -> object:
    """What a module that is loaded here has under a dotted name; None without it."""
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _library_class(connection: Connection, parts: list, decoder: Decoder) -> object:
    """A class of this process's own library, of harmless modules or an exception; else as of the program."""
    module, name, number, base = parts
    found = find(module, name) if type(module) is type(name) is str else None
    if isinstance(found, type) and (
        module == "builtins"
        or module in guards.TRUSTED
        or (issubclass(found, BaseException) and module.partition(".")[0] in sys.stdlib_module_names)
    ):
        return found
    name, above = str(name).rpartition(".")[2], find("builtins", str(base))
    if isinstance(above, type) and issubclass(above, BaseException):
        return connection.known.setdefault(number, type(name, (above,), {"__module__": str(module)}))
    return connection.make_class([number, name, "", ""], decoder)


def _named_tuple(connection: Connection, parts: list, decoder: Decoder) -> tuple:
    """A tuple with names; built without the text that `collections.namedtuple` evaluates."""
    name, fields = parts[0], parts[1].split(",")
    guards.check_fields(fields)
    getters = {field: property(lambda self, k=k: self[k]) for k, field in enumerate(fields)}
    kind = type(str(name), (tuple,), {**getters, "_fields": tuple(fields), "__slots__": ()})
    return tuple.__new__(kind, decoder.values(parts[2:]))


def _view(connection: Connection, parts: list, decoder: Decoder) -> object:
    items = decoder.values(parts[1:])
    if parts[0] == "keys":
        return dict.fromkeys(items).keys()
    return dict(enumerate(items)).values() if parts[0] == "values" else dict(items).items()


def _number(parts: list) -> int:
    if type(parts[0]) is int:
        return parts[0]
    raise WireError("no number")


_MAKERS = {
    "p": lambda c, p, d: c.functions[p[0]],
    "m": lambda c, p, d: handles.Module(str(p[0])),
    "F_": lambda c, p, d: handles.Function(c, _number(p), str(p[1]), str(p[2])),
    "b": _library_class,
    "K": Connection.make_class,
    "h": Connection.make_handle,
    "i": Connection.make_instance,
    "e": Connection.make_exception,
    "g": Connection.make_stream,
    "w": lambda c, p, d: c.coroutine(_number(p)),
    "v": _view,
    "N": _named_tuple,
    "a": lambda c, p, d: arrays.judged(arrays.decode(p)),
}
