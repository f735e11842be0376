"""Test functions in pytest's style, called like plain functions: parametrised cases and small fixtures."""

import collections
import contextlib
import io
import itertools
import pathlib
import sys
import tempfile
import types


def wrap(namespace: dict) -> None:
    """Lets ``test_x()`` run all cases of a test function that has parameters, in classes too."""
    for name, x in list(namespace.items()):
        if name.startswith("test") and isinstance(x, types.FunctionType) and x.__code__.co_argcount:
            namespace[name] = _runner(x, namespace)
        elif name.startswith("Test") and type(x) is type:
            for key, method in list(vars(x).items()):
                if key.startswith("test") and isinstance(method, types.FunctionType):
                    setattr(x, key, _runner(method, namespace, bound=1))


def _runner(function, namespace: dict, bound: int = 0):
    names = _parameters(function)[bound:]

    def run(*args, **kwargs):
        if len(args) > bound or kwargs or not names:
            return function(*args, **kwargs)
        for case in _cases(function):
            with contextlib.ExitStack() as stack:
                given = {name: _value(name, case, namespace, stack) for name in names}
                function(*args, **given)

    run.__name__ = function.__name__
    return run


def _parameters(function) -> tuple[str, ...]:
    """Names of the positional parameters without a default."""
    code = function.__code__
    return code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]


def _cases(function):
    """Dictionaries of arguments, one for each combination of the parametrize marks."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    choices = []
    for mark in marks:
        names, values = (*mark.args, mark.kwargs.get("argvalues"))[:2]
        names = (
            [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names
        )
        rows = [getattr(row, "values", row) if _is_param(row) else row for row in values]
        single = [not _is_param(row) for row in values]
        choices.append(
            [
                dict(zip(names, (row,) if len(names) == 1 and alone else row, strict=True))
                for row, alone in zip(rows, single, strict=True)
            ]
        )
    for combination in itertools.product(*choices):
        yield {name: value for part in combination for name, value in part.items()}


def _is_param(row: object) -> bool:
    return type(row).__name__ == "ParameterSet"


def _value(name: str, case: dict, namespace: dict, stack: contextlib.ExitStack) -> object:
    """The argument of that name: of the case, of a fixture that the tests define, or of pytest's own few."""
    if name in case:
        return case[name]
    fixture = _fixture(namespace.get(name))
    if fixture is not None:
        needs = {key: _value(key, case, namespace, stack) for key in _parameters(fixture)}
        made = fixture(**needs)
        if isinstance(made, types.GeneratorType):
            stack.callback(next, made, None)
            return next(made)
        return made
    if name == "capsys":
        return stack.enter_context(Captured())
    if name == "tmp_path":
        return pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if name == "monkeypatch":
        import pytest

        return stack.enter_context(pytest.MonkeyPatch.context())
    raise LookupError(f"no fixture {name!r}")


def _fixture(x: object):
    """The function behind ``@pytest.fixture``, which its versions wrap differently; None if it is none."""
    if type(x).__name__ == "FixtureFunctionDefinition":
        return x._get_wrapped_function()
    if hasattr(x, "_pytestfixturefunction"):
        return x.__pytest_wrapped__.obj
    return None


Texts = collections.namedtuple("Texts", "out err")


class Captured:
    """pytest's ``capsys`` as far as ``readouterr`` goes."""

    def __enter__(self) -> "Captured":
        self.before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        return self

    def __exit__(self, *error) -> None:
        sys.stdout, sys.stderr = self.before

    def readouterr(self) -> object:
        texts = [stream.getvalue() for stream in (sys.stdout, sys.stderr)]
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        return Texts(*texts)
