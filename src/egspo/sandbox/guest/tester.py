"""The process of the tests: runs them against stand-ins for what the program defines, and gives the verdict.

Which names the program may set here: those that the tests call. A name of a builtin, of a common module or of
the problem's own helpers stays what it is, or a program could redefine what judges it.
"""

import ast
import builtins
import importlib
import json
import os
import sys
import types

from egspo.sandbox.guest import pytest_style
from egspo.sandbox.guest.connection import TESTS, Connection, Gone, find
from egspo.sandbox.guest.guards import REFUSED, STEERING, TRUSTED
from egspo.sandbox.guest.handles import NAMED, Function, Module, Proxy
from egspo.sandbox.guest.wire import Wire

ALIASES = {"np": "numpy"}
HELPERS = ("math", "collections", "itertools", "functools", "heapq", "bisect", "copy", "operator", "re")
"""Modules whose functions a test may use bare, as the program's imports would let it."""
MOST_WORDS = 300


class Solution(types.ModuleType):
    """``import solution``: whatever the program has under a name, asked for when it is used.

    ``exported`` is what ``import *`` takes of it, ``named`` are the names by which the tests use its classes.
    """

    def __init__(self, connection: Connection, exported: list[str], named: set[str]):
        super().__init__("solution")
        self._connection, self._class_names = connection, named
        self.__all__ = exported

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return known_by(name, self._connection.request("name", name), self._class_names)
        except KeyError:
            raise AttributeError(f"the program defines no {name}") from None


def known_by(name: str, value: object, named: set[str]) -> object:
    """``value``, which the program has under ``name``; a class is one that is named if the tests use it."""
    if isinstance(value, Proxy) and name in named and NAMED.fullmatch(name):
        type.__setattr__(value, "_named", True)
    return value


class Verdict:
    """Lines of JSON to the host; nothing but this process holds the descriptor."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def say(self, **facts: object) -> None:
        data = memoryview(json.dumps(facts).encode("ascii") + b"\n")
        while data:
            data = data[os.write(self.descriptor, data) :]


class Trial:
    """One program against its tests."""

    def __init__(self, wire: Wire, verdict: Verdict, job: dict):
        self.verdict, self.job = verdict, job
        self.namespace = {"__name__": TESTS, "__builtins__": builtins}
        self.connection = Connection(wire, self.classes)
        self.told: set[str] = set()
        self.named: set[str] = set()

    def run(self) -> None:
        if self.connection.receive() != ["hello"]:
            raise Gone("began with no message")
        self.verdict.say(ready=True)
        for step in (self.prepare, self.load, self.set_up):
            why = step()
            if why:
                self.verdict.say(fatal=why)
                return
        for i, test in enumerate(self.job["tests"]):
            self.connection.notes.clear()
            why = self.attempt(test, f"test {i + 1}")
            if why and self.connection.notes:
                why = f"{why} ({self.connection.notes[0]})"
            self.verdict.say(test=i, error=why)
            if self.connection.broken:
                break
        self.verdict.say(end=True)

    def prepare(self) -> str | None:
        why = self.attempt(self.job["preamble"], "preamble")
        return why and f"preamble: {why}"

    def load(self) -> str | None:
        self.tell_classes()
        try:
            self.connection.request("load", self.job["preamble"], self.job["source"])
            names = self.connection.request("names")
            texts = [self.job["setup"], *self.job["tests"]]
            used, defined = _names(texts)
            self.named = _classes_named(texts)
            self.connection.stops = not used.isdisjoint(STEERING)
            # Values that no test names can be large.
            asked = [name for name, own in names.items() if own or name in used]
            values = self.connection.request("values", asked)
        except Gone as error:
            return f"program: {error}"
        except SystemExit as error:
            return f"program ended early (exit {error.code})"
        except BaseException as error:
            return f"program: {describe(error)}"
        if type(values) is not dict or not all(type(name) is str for name in [*names, *values]):
            return "program: answered with no message"
        self.bind(values, used, defined)
        sys.modules["solution"] = Solution(self.connection, self.exported(values, defined), self.named)
        return None

    def exported(self, values: dict[str, object], defined: set[str]) -> list[str]:
        """Public names of the program that stand for nothing else in the tests."""
        names = [name for name in values if not name.startswith("_") and not hasattr(builtins, name)]
        bound = self.namespace
        return [name for name in names if name not in defined and bound.get(name) is values[name]]

    def set_up(self) -> str | None:
        why = self.attempt(self.job["setup"], "setup")
        if why:
            return f"setup: {why}"
        pytest_style.wrap(self.namespace)
        return None

    def attempt(self, text: str, name: str) -> str | None:
        """None if the text ran to its end, else why not."""
        self.tell_classes()
        REFUSED.clear()
        self.connection.hidden.clear()
        try:
            exec(compile(text, name, "exec", dont_inherit=True), self.namespace)
        except Gone as error:
            return f"program {error}"
        except ModuleNotFoundError as error:
            return f"needs {error.name}, which is not installed here"
        except BaseException as error:
            return self.refusal() or describe(error)
        return self.refusal() or next(iter(self.connection.hidden), None)

    def refusal(self) -> str | None:
        """Why the test that ran does not count, whatever exceptions it caught."""
        if self.connection.broken:
            return f"program {self.connection.broken}"
        return f"cannot be judged: {REFUSED[0]}" if REFUSED else None

    def classes(self) -> dict[str, type]:
        """The classes by name that preamble, set-up and tests defined here."""
        return {
            x.__name__: x
            for x in self.namespace.values()
            if isinstance(x, type) and x.__module__ == TESTS and not isinstance(x, Proxy)
        }

    def tell_classes(self) -> None:
        names = set(self.classes())
        if names != self.told and not self.connection.broken:
            self.told = names
            self.connection.request("classes", sorted(names))

    def bind(self, names: dict[str, object], used: set[str], defined: set[str]) -> None:
        """Puts the program's names into those of the tests, given the names that these use and define."""
        wanted, entries = set(self.job["entry_points"]), self.namespace
        subjects = {name for name in used - defined - set(entries) if not hasattr(builtins, name)}
        subjects = {name for name in subjects if ALIASES.get(name, name) not in TRUSTED}
        for name in sorted(used | set(names)):
            if name in wanted:
                if name in names:
                    entries[name] = known_by(name, names[name], self.named)
                continue
            if hasattr(builtins, name):
                if not wanted and not subjects and name in used and name in names:
                    entries[name] = names[name]
                continue
            if name in entries or (name.startswith("_") and name not in used):
                continue
            found = _own(name, names.get(name), name in used, bool(wanted))
            if found is not None or name in names:
                entries[name] = known_by(name, names[name], self.named) if found is None else found


def _own(name: str, value: object, used: bool, strict: bool) -> object:
    """This process's own object for a name of a common module or of what is in one; None if it has none."""
    module = ALIASES.get(name, name)
    if isinstance(value, Module) and value._name in TRUSTED:
        module = value._name
    if module in TRUSTED:
        return _imported(module) if used else None
    if not used:
        return None
    if isinstance(value, Function) and value.__qualname__ == name and value.__module__ in TRUSTED:
        _imported(value.__module__)
        return find(value.__module__, name)
    if value is not None and strict:
        return next((find(x, name) for x in HELPERS if find(x, name) is not None), None)
    return None


def _imported(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _names(texts: list[str]) -> tuple[set[str], set[str]]:
    """(names that the texts read, names that they define)."""
    used, defined = set(), set()
    for text in texts:
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in nodes:
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return used, defined


def _classes_named(texts: list[str]) -> set[str]:
    """Names that the texts use other than to take a method, as ``Solution().f`` does: such a class holds
    functions, and its objects are not what is tested."""
    found: set[str] = set()
    for text in texts:
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        imports = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
        own = {alias.asname or alias.name: alias.name for alias in imports}
        calls = [node.value for node in nodes if isinstance(node, ast.Attribute)]
        calls = [x for x in calls if isinstance(x, ast.Call) and not x.args and not x.keywords]
        holders = {id(x.func) for x in calls}
        for node in nodes:
            if id(node) in holders:
                continue
            if isinstance(node, ast.Name):
                found.add(own.get(node.id, node.id))
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
    return found


def describe(error: BaseException) -> str:
    """Class and message of an exception, in one line."""
    try:
        words = " ".join(str(error).split())
    except BaseException:
        words = ""
    name = type(error).__name__
    return f"{name}: {words}"[:MOST_WORDS] if words else name


def main(reading: int, writing: int, verdict: int) -> None:
    """Runs one job and says how it went."""
    wire, say = Wire(reading, writing), Verdict(verdict)
    job = wire.receive(1 << 40)
    sys.path[:] = [*sys.path, *job["paths"]]
    try:
        Trial(wire, say, job).run()
    except Gone as error:
        say.say(fatal=f"program {error}")
