"""What stands in the tests' process for functions, classes and objects of the program.

The program may say what its objects contain, never whether they are right: an object of its own class equals
no value of the tests, and does arithmetic and membership with one only if the tests name its class
(`Proxy.named`). Else a function could return an object that equals, contains or cancels whatever it meets.
"""

import operator
import re

from egspo.sandbox.guest.guards import Unjudgeable, check_name

NAMED = re.compile(r"[A-Z]+[a-z][A-Za-z0-9]*")
"""Names that tests give to classes; functions are spelt otherwise."""


class Function:
    """A function, method or other callable of the program."""

    def __init__(self, connection, number: int, module: str, qualname: str):
        own = self.__dict__
        own["_connection"], own["_number"] = connection, number
        own["__module__"], own["__qualname__"] = module, qualname
        own["__name__"] = qualname.rpartition(".")[2]

    def __call__(self, *args, **kwargs):
        return self._connection.request("call", self._number, args, kwargs)

    def __getattr__(self, name: str):
        check_name("a function", name, named=False)
        return self._connection.request("getattr", self._number, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._connection.request("setattr", self._number, name, value)

    def __repr__(self) -> str:
        return f"<function {self.__name__}>"


class Module:
    """A module that the program imported; the tests may use its name only where they have it themselves."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str):
        check_name("a module", name, named=True)
        raise Unjudgeable(f"the test uses {self._name}.{name} by the program's import of it")


class Proxy(type):
    """Class of the classes of the program."""

    def __new__(cls, name: str, bases: tuple, namespace: dict, connection=None, number: int = -1):
        if connection is None:
            raise Unjudgeable(f"the test derives a class from the program's {bases[0].__name__}")
        made = super().__new__(cls, name, bases, namespace)
        for key, value in (("_home", connection), ("_class_number", number), ("_named", False)):
            type.__setattr__(made, key, value)
        type.__setattr__(made, "_methods", {})
        return made

    def __init__(cls, name: str, bases: tuple, namespace: dict, connection=None, number: int = -1):
        super().__init__(name, bases, namespace)

    def __call__(cls, *args, **kwargs):
        return cls._home.request("call", cls._class_number, args, kwargs)

    def __getattr__(cls, name: str):
        check_name(f"class {cls.__name__}", name, cls._named)
        return cls._home.request("getattr", cls._class_number, name)

    def __setattr__(cls, name: str, value: object) -> None:
        cls._home.request("setattr", cls._class_number, name, value)

    def __iter__(cls):
        return iter(cls._home.request("operate", "iter", (cls,)))

    def __len__(cls) -> int:
        return cls._home.request("operate", "len", (cls,))

    def __getitem__(cls, key: object):
        return cls._home.request("operate", "getitem", (cls, key))


class Handle:
    """An object of the program."""

    __slots__ = ("__weakref__", "_connection", "_number")

    def __getattr__(self, name: str):
        kind = type(self)
        check_name(f"class {kind.__name__}", name, kind._named)
        methods = kind._methods
        if name not in methods:
            methods[name] = self._connection.request("is_method", kind._class_number, name) is True
        if not methods[name]:
            return self._connection.request("getattr", self._number, name)

        def method(*args, **kwargs):
            return self._connection.request("method", self._number, name, args, kwargs)

        method.__name__ = method.__qualname__ = name
        return method

    def __setattr__(self, name: str, value: object) -> None:
        self._connection.request("setattr", self._number, name, value)

    def __delattr__(self, name: str) -> None:
        self._connection.request("delattr", self._number, name)

    def __repr__(self) -> str:
        return self._connection.text("repr", self)

    def __str__(self) -> str:
        return self._connection.text("str", self)

    def __format__(self, spec: str) -> str:
        return self._connection.text("format", self, spec)

    def __copy__(self):
        return self._connection.request("operate", "copy", (self,))

    def __deepcopy__(self, memo: dict):
        return self._connection.request("operate", "deepcopy", (self,))

    def __reduce_ex__(self, protocol: int):
        raise Unjudgeable(f"the test pickles an object of the program's own class {type(self).__name__}")

    def __eq__(self, other: object):
        if isinstance(other, Handle):
            return self is other or bool(self._connection.request("operate", "eq", (self, other)))
        if type(self)._base:
            return self._connection.request("plain", self) == other
        words = f"an object of the program's own class {type(self).__name__} equals no value"
        self._connection.notes.append(words)
        return NotImplemented

    __hash__ = object.__hash__


def make_handle(kind: Proxy, number: int) -> Handle:
    made = object.__new__(kind)
    object.__setattr__(made, "_connection", kind._home)
    object.__setattr__(made, "_number", number)
    return made


def make_class(connection, number: int, name: str, dunders: list[str], base: str, mro: list[type]) -> Proxy:
    """The class that stands for one of the program, with those operators that it has."""
    namespace = {name: _DUNDERS[name] for name in dunders if name in _DUNDERS}
    if "__eq__" in dunders and "__hash__" not in dunders:
        namespace["__hash__"] = None
    namespace |= {"__slots__": (), "_base": base}
    above = [kind for kind in mro if isinstance(kind, Proxy)]
    bases = tuple(kind for kind in above if not any(issubclass(x, kind) for x in above if x is not kind))
    try:
        return Proxy(name, bases or (Handle,), namespace, connection=connection, number=number)
    except TypeError:
        return Proxy(name, (Handle,), namespace, connection=connection, number=number)


def _mixed(self: Handle, other: object) -> None:
    if not isinstance(other, Handle) and not type(self)._named:
        raise Unjudgeable(f"an object of the program's own class {type(self).__name__} meets a value")


def _binary(name: str, swapped: bool = False):
    def method(self, other):
        if type(self)._base and not isinstance(other, Handle) and not type(self)._named:
            plain = self._connection.request("plain", self)
            pair = (other, plain) if swapped else (plain, other)
            return getattr(operator, name)(*pair)
        _mixed(self, other)
        return self._connection.request("operate", name, (other, self) if swapped else (self, other))

    return method


def _order(name: str):
    def method(self, other):
        if type(self)._base and not isinstance(other, Handle):
            return getattr(operator, name)(self._connection.request("plain", self), other)
        if not isinstance(other, Handle):
            raise Unjudgeable(f"an object of the program's own class {type(self).__name__} meets a value")
        return bool(self._connection.request("operate", name, (self, other)))

    return method


def _unary(name: str, kind: type | None = None):
    def method(self, *args):
        result = self._connection.request("operate", name, (self, *args))
        return result if kind is None else kind(result)

    return method


def _contains(self, item: object) -> bool:
    if type(self)._base:
        return item in self._connection.request("plain", self)
    if type(self)._named or isinstance(item, Handle):
        return bool(self._connection.request("operate", "contains", (self, item)))
    return any(x is item or x == item for x in iter(self))


def _iter(self):
    found = self._connection.request("operate", "iter", (self,))
    return self._connection.iterator(found) if isinstance(found, Handle) else iter(found)


_UNARY = "int float index complex neg pos abs round floor ceil trunc"
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_DUNDERS = {
    "__call__": lambda self, *args, **kwargs: self._connection.request("call", self._number, args, kwargs),
    "__len__": _unary("len"),
    "__iter__": _iter,
    "__next__": lambda self: next(self._connection.iterator(self)),
    "__reversed__": _unary("reversed"),
    "__getitem__": _unary("getitem"),
    "__setitem__": _unary("setitem"),
    "__delitem__": _unary("delitem"),
    "__contains__": _contains,
    "__enter__": lambda self: self._connection.request("method", self._number, "__enter__", (), {}),
    "__exit__": lambda self, *error: self._connection.leave(self, error),
    "__bool__": _unary("bool", bool),
    "__hash__": _unary("hash", int),
    **{f"__{name}__": _unary(name) for name in _UNARY.split()},
    "__invert__": _unary("inv"),
    **{f"__{name}__": _order(name) for name in ("lt", "le", "gt", "ge")},
}
for _name in _BINARY.split():
    _function = _name + "_" if _name in ("and", "or") else _name
    _DUNDERS[f"__{_name}__"] = _binary(_function)
    _DUNDERS[f"__r{_name}__"] = _binary(_function, swapped=True)
for _name in ("iadd", "isub", "imul"):
    _DUNDERS[f"__{_name}__"] = _binary(_name)
