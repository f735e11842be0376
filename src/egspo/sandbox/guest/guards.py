"""What a program may not do to the tests that judge it, short of solving their problem."""

from egspo.sandbox.guest.wire import WireError

_JUDGES = """
startswith endswith isdigit isalpha isalnum isdecimal isnumeric isspace isupper islower istitle isidentifier
isprintable isascii is_integer issubset issuperset isdisjoint equals all any
"""
JUDGES = frozenset(_JUDGES.split())
"""Methods of builtin values by which tests judge them."""
_ASKABLE = "doc dict name qualname module annotations members dataclass_fields wrapped init slots signature"
ASKABLE = frozenset(f"__{name}__" for name in _ASKABLE.split())
"""Special names that are asked of the program; libraries act on others (``__array_ufunc__``)."""
_TRUSTED = """
 abc array ast base64 bisect calendar cmath collections collections.abc copy csv dataclasses datetime
decimal difflib enum fractions functools hashlib heapq html itertools json math numbers operator os.path
queue random re statistics string struct sys textwrap time timeit typing unicodedata uuid numpy
"""
TRUSTED = frozenset(_TRUSTED.split())
"""Modules in whose own classes and functions a test may use a name that the program imported."""
STEERING = frozenset(("StopIteration", "StopAsyncIteration", "SkipTest"))
"""Exceptions that end a loop or a test as if all were well: `map` and `zip` take the first for their end."""
REFUSED: list[str] = []
"""Why the test that runs cannot be judged; it then fails, whatever it makes of the exception."""


class Unjudgeable(Exception):
    """A test asks what cannot be asked of another process, or should not be of the program."""

    def __init__(self, words: str):
        super().__init__(words)
        REFUSED.append(words)


def check_name(kind: str, name: str, named: bool) -> None:
    """Refuses what a value is judged by of what stands in the place of one."""
    if name[:2] == "__" and name not in ASKABLE:
        raise AttributeError(name)
    if name in JUDGES and not named:
        raise Unjudgeable(f"an object of the program's own ({kind}) is asked {name}")


def check_attributes(kind: type, names: list) -> None:
    """Refuses attributes of an object that would take the place of what judges it."""
    for name in names:
        if type(name) is not str:
            raise WireError("an attribute's name is no string")
        if name in JUDGES or callable(getattr(kind, name, None)):
            raise Unjudgeable(f"a {kind.__name__} of the program has a {name} of its own")


def check_fields(fields: list[str]) -> None:
    """Refuses fields that no named tuple of Python's can have, and those that would judge it."""
    for k, field in enumerate(fields):
        if not field.isidentifier() or (field[0] == "_" and field != f"_{k}") or field in JUDGES:
            raise WireError(f"a named tuple with a field {field!r}")


def steers(error: BaseException) -> bool:
    return any(kind.__name__ in STEERING for kind in type(error).__mro__)


def judges(error: BaseException | None) -> bool:
    """Whether an exception of the tests says that one failed: by an assertion, or by more than an
    `Exception`, as pytest's ``fail`` does."""
    return isinstance(error, AssertionError) or (error is not None and not isinstance(error, Exception))
