"""Object graphs flattened to plain data, and back.

A value is written inline if JSON has it (None, bool, int up to 64 bits, float, str), else as ``[k]``: the
k-th node of the message. A node is ``[tag, …]`` and refers to others by number, so that cycles and shared
objects survive, nothing nests and neither side recurses. Reading builds objects of a fixed set of classes and
runs no code of the sender. Numbers below a base stand for the objects of the request that is answered, so
that an argument which comes back is the same object again.
"""

import collections
import datetime
import decimal
import fractions

from egspo.sandbox.guest.wire import WireError

SMALL = 1 << 63
LARGEST_INTEGER = 1 << 22
"""Hexadecimal digits of the largest whole number that is read."""

DATES = {
    kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
}
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, list, dict, set, tuple, bool)}
_ATOMS = {"...": Ellipsis, "NotImplemented": NotImplemented}
_ITEMS = {"l": list, "t": tuple, "s": set, "z": frozenset}
_TAGS = {kind: tag for tag, kind in _ITEMS.items()}
MUTABLE = ("l", "s", "d", "D", "O", "C", "q", "Y", "i")
"""Tags of what the receiver may change in place, and the sender then sees changed."""


class Encoder:
    """Writes the values of one message; ``special(value, encoder)`` gives the node of what is no plain data.

    ``known`` are the objects whose numbers the reader knows already (of the request that is answered).
    """

    def __init__(self, special, known: list = ()):
        self.special = special
        self.objects = list(known)
        self.base = len(self.objects)
        self.index = {id(obj): k for k, obj in enumerate(self.objects) if not _is_inline(obj)}
        self.nodes: list = []
        self._done = 0

    def value(self, x: object) -> object:
        kind = type(x)
        if x is None or kind is bool or kind is str or kind is float:
            return x
        if kind is int and -SMALL < x < SMALL:
            return x
        k = self.index.get(id(x))
        if k is None:
            k = self.index[id(x)] = len(self.objects)
            self.objects.append(x)
            self.nodes.append(None)
        return [k]

    def values(self, items) -> list:
        return [self.value(item) for item in items]

    def pairs(self, mapping) -> list:
        return [self.value(x) for pair in mapping for x in pair]

    def finish(self) -> list:
        """The nodes, once no more values are added by `value`."""
        while self._done < len(self.nodes):
            at = self._done
            self._done += 1
            self.nodes[at] = self.node(self.objects[self.base + at])
        return self.nodes

    def node(self, x: object) -> list:
        kind = type(x)
        writer = _WRITERS.get(kind)
        if writer is not None:
            return writer(x, self)
        return self.special(x, self)

    def plain(self, x: object) -> list | None:
        """The node of the plain part of an instance of a subclass of a builtin; None if it is of none."""
        for kind in _BASES:
            if isinstance(x, kind):
                return _WRITERS[kind](x, self)
        return None


def _is_inline(x: object) -> bool:
    return x is None or type(x) in (bool, str, float) or (type(x) is int and -SMALL < x < SMALL)


_WRITERS = {
    int: lambda x, e: ["I", hex(x)],
    bool: lambda x, e: ["I", hex(x)],
    float: lambda x, e: ["f", float.__repr__(x)],
    str: lambda x, e: ["S", str.__str__(x)],
    complex: lambda x, e: ["c", x.real, x.imag],
    bytes: lambda x, e: ["y", bytes.decode(x, "latin-1")],
    bytearray: lambda x, e: ["Y", bytearray.decode(x, "latin-1")],
    range: lambda x, e: ["r", *e.values((x.start, x.stop, x.step))],
    slice: lambda x, e: ["/", *e.values((x.start, x.stop, x.step))],
    collections.deque: lambda x, e: ["q", x.maxlen, *e.values(collections.deque.__iter__(x))],
    collections.Counter: lambda x, e: ["C", *e.pairs(dict.items(x))],
    collections.OrderedDict: lambda x, e: ["O", *e.pairs(collections.OrderedDict.items(x))],
    collections.defaultdict: lambda x, e: [
        "D",
        getattr(x.default_factory, "__name__", None),
        *e.pairs(dict.items(x)),
    ],
    dict: lambda x, e: ["d", *e.pairs(dict.items(x))],
    decimal.Decimal: lambda x, e: ["E", decimal.Decimal.__str__(x)],
    fractions.Fraction: lambda x, e: ["F", *e.values((x.numerator, x.denominator))],
    datetime.timedelta: lambda x, e: ["T", "timedelta", x.days, x.seconds, x.microseconds],
    type(Ellipsis): lambda x, e: ["!", "..."],
    type(NotImplemented): lambda x, e: ["!", "NotImplemented"],
    **{
        kind: lambda x, e, kind=kind: ["T", kind.__name__, kind.isoformat(x)]
        for kind in (datetime.datetime, datetime.date, datetime.time)
    },
    **{
        kind: lambda x, e, kind=kind, tag=tag: [tag, *e.values(kind.__iter__(x))]
        for kind, tag in _TAGS.items()
    },
}
# A class before those that it is derived from.
_BASES = tuple(sorted((k for k in _WRITERS if k not in (bool, slice)), key=lambda kind: -len(kind.__mro__)))


class Decoder:
    """Builds the objects of one message; ``special(node, decoder)`` builds those that are no plain data.

    Raises:
        WireError: for whatever is no message of `Encoder`, cycles of tuples among it.
    """

    def __init__(self, special, nodes: list, known: list = ()):
        if type(nodes) is not list:
            raise WireError("nodes are no list")
        self.special, self.nodes = special, nodes
        self.base = len(known)
        self.objects: list = [*known, *[_MISSING] * len(nodes)]
        self.late: list = []

    def build(self, roots: list) -> list:
        """The values ``roots`` refer to."""
        try:
            for k in range(self.base, len(self.objects)):
                self._make(k)
            self._fill()
            return self.values(roots)
        except WireError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise WireError(f"a malformed message ({error})") from error

    def value(self, x: object) -> object:
        if type(x) is not list:
            if type(x) is dict:
                raise WireError("a JSON object")
            return x
        (k,) = x
        if type(k) is not int or not 0 <= k < len(self.objects):
            raise WireError(f"no node {k!r}")
        return self.objects[k]

    def values(self, items) -> list:
        return [self.value(item) for item in items]

    def update(self, k: int, node: list) -> None:
        """Gives the known object ``k`` the content of a node of its own kind."""
        refill(self.objects[k], node, self)

    def _make(self, k: int) -> None:
        """Object k, after the immutable ones that it is made of; changeable ones begin empty."""
        stack, open_nodes = [k], set()
        while stack:
            at = stack[-1]
            if self.objects[at] is not _MISSING:
                stack.pop()
                continue
            node = self.nodes[at - self.base]
            if type(node) is not list or not node or type(node[0]) is not str:
                raise WireError("a node without a tag")
            missing = [] if node[0] in MUTABLE else self._missing(node)
            if missing:
                if at in open_nodes:
                    raise WireError("a tuple that contains itself")
                open_nodes.add(at)
                stack.extend(missing)
                continue
            self.objects[at] = self._new(node)
            if node[0] in MUTABLE:
                self.late.append(at)
            stack.pop()

    def _missing(self, node: list) -> list[int]:
        found = []
        for x in node:
            if type(x) is list and self.value(x) is _MISSING:
                found.append(x[0])
        return found

    def _new(self, node: list) -> object:
        maker = _MAKERS.get(node[0])
        return self.special(node, self) if maker is None else maker(node[1:], self)

    def _fill(self) -> None:
        """Contents of changeable objects: those first that others may need in order to be hashed."""
        nodes = [(self.objects[k], self.nodes[k - self.base]) for k in self.late]
        for tags in (("i",), ("l", "q", "Y"), ("s", "d", "D", "O", "C")):
            for obj, node in nodes:
                if node[0] in tags:
                    refill(obj, node, self)


_MISSING = type("Missing", (), {})()


def refill(obj: object, node: list, decoder: Decoder) -> None:
    """Puts the content of ``node`` into ``obj`` in place."""
    tag = node[0]
    if tag == "l" and isinstance(obj, list):
        obj[:] = decoder.values(node[1:])
    elif tag == "Y" and isinstance(obj, bytearray):
        obj[:] = node[1].encode("latin-1")
    elif tag == "s" and isinstance(obj, set):
        items = decoder.values(node[1:])
        obj.clear()
        obj.update(items)
    elif tag == "q" and isinstance(obj, collections.deque):
        items = decoder.values(node[2:])
        obj.clear()
        obj.extend(items)
    elif tag in ("d", "O", "C", "D") and isinstance(obj, dict):
        items = decoder.values(node[2 if tag == "D" else 1 :])
        obj.clear()
        for key, value in zip(items[::2], items[1::2], strict=True):
            obj[key] = value
    elif tag == "i" and type(node[1]) is str:
        set_attributes(obj, decoder.values(node[2:]))
    else:
        raise WireError("content of another kind of object")


def attributes(obj: object) -> list[tuple[str, object]]:
    """(name, value) of the attributes that an instance itself holds, in its dictionary or in slots."""
    found = dict(getattr(obj, "__dict__", {}))
    for name in _slots(type(obj)):
        if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
            found[name] = getattr(obj, name)
    return list(found.items())


def set_attributes(obj: object, flat: list) -> None:
    """Replaces the attributes of an instance by ``[name, value, …]``; runs no code of its class."""
    new = dict(zip(flat[::2], flat[1::2], strict=True))
    if not all(type(name) is str for name in new):
        raise WireError("an attribute's name is no string")
    slots = _slots(type(obj))
    held = getattr(obj, "__dict__", None)
    if held is not None:
        held.clear()
    for name, value in new.items():
        if name in slots:
            slots[name].__set__(obj, value)
        elif held is not None:
            held[name] = value


def _slots(kind: type) -> dict:
    member = type(_Slotted.slot)
    return {name: x for base in kind.__mro__ for name, x in vars(base).items() if type(x) is member}


class _Slotted:
    __slots__ = ("slot",)


def _integer(digits: str) -> int:
    if len(digits) > LARGEST_INTEGER:
        raise WireError("a number of too many digits")
    return int(digits, 16)


def _date(parts: list) -> object:
    kind = DATES[parts[0]]
    return kind(*parts[1:]) if parts[0] == "timedelta" else kind.fromisoformat(*parts[1:])


def _mapping(kind) -> object:
    return lambda parts, decoder: kind()


_MAKERS = {
    "I": lambda p, d: _integer(p[0]),
    "f": lambda p, d: float(p[0]),
    "S": lambda p, d: str(p[0]),
    "c": lambda p, d: complex(float(p[0]), float(p[1])),
    "y": lambda p, d: p[0].encode("latin-1"),
    "Y": lambda p, d: bytearray(),
    "r": lambda p, d: range(*d.values(p)),
    "/": lambda p, d: slice(*d.values(p)),
    "q": lambda p, d: collections.deque(maxlen=p[0]),
    "C": _mapping(collections.Counter),
    "O": _mapping(collections.OrderedDict),
    "D": lambda p, d: collections.defaultdict(None if p[0] is None else _FACTORIES.get(p[0])),
    "d": _mapping(dict),
    "E": lambda p, d: decimal.Decimal(p[0]),
    "F": lambda p, d: fractions.Fraction(*d.values(p)),
    "T": lambda p, d: _date(p),
    "!": lambda p, d: _ATOMS[p[0]],
    "=": lambda p, d: d.value(p[0]),
    "l": lambda p, d: [],
    "s": lambda p, d: set(),
    "t": lambda p, d: tuple(d.values(p)),
    "z": lambda p, d: frozenset(d.values(p)),
}
