"""Code of the user's own: Python files, functions by name, and rewards by a function.

Whatever is wrong with it is one line that names the setting, the file and the line.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFunc = Callable[..., Sequence[float | None]]
"""``f(prompts, completions, **columns) -> list[float | None]``, TRL's signature; None: does not apply."""

Messages = Sequence[Mapping[str, str]]


def import_file(path: Path, field: str) -> ModuleType:
    """The module that a Python file is; run once, and again only after the file has changed.

    What lies beside the file can be imported from it.

    Raises:
        ValueError: naming ``field`` if there is no such file, or it raises.
    """
    path = path.resolve()
    if path.suffix != ".py" or not path.is_file():
        what = "no such file" if path.suffix == ".py" else "not a Python file"
        raise ValueError(f"{field}: {what}: {path}; give the path of a .py file")
    digest = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    name = f"egspo_external_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look their annotations up there, while the file still runs.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{field}: {_told(error)}; correct {path}") from error
    return module


def import_function(reference: str, field: str) -> Callable:
    """The function behind ``module:function`` or ``file.py:function``.

    Modules are looked for in the working directory too.

    Raises:
        ValueError: naming ``field`` if there is none, or the import raises.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(
            f"{field}: {reference!r} names no function; write module:function or file.py:function"
        )
    module = import_file(Path(place), field) if place.endswith(".py") else _import_module(place, field)
    if not callable(getattr(module, name, None)):
        own = [key for key, value in vars(module).items() if _is_function_of(value, module)]
        raise ValueError(f"{field}: {place} has no function {name!r}; it has: {', '.join(own) or 'none'}")
    return getattr(module, name)


def _import_module(name: str, field: str) -> ModuleType:
    # As `python -m` does; a console script's own folder stands there instead.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{field}: no module {error.name!r} in the working directory or installed; write "
                "module:function or file.py:function"
            ) from None
        raise ValueError(f"{field}: {name!r} cannot be imported: {_told(error)}") from error


def call_reward(
    function: RewardFunc,
    name: str,
    prompts: Sequence[Messages],
    completions: Sequence[str],
    fields: Sequence[Mapping[str, Any]],
) -> list[float | None]:
    """One checked reward for each completion of a prompt (chat messages); its fields become columns.

    A column has None where a prompt lacks the field.

    Raises:
        ValueError: beginning with ``name``, if the function raises or returns anything but one finite number
            or None for each.
    """
    columns = {
        key: [row.get(key) for row in fields] for key in sorted({key for row in fields for key in row})
    }
    try:
        values = function(
            prompts=[list(messages) for messages in prompts], completions=list(completions), **columns
        )
    except Exception as error:
        raise ValueError(f"{name} raised {_told(error)}") from error
    try:
        values = [None if value is None else float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{name} returned {values!r:.80}; return a list of numbers or None") from None
    if len(values) != len(completions):
        raise ValueError(
            f"{name} returned {len(values)} rewards for {len(completions)} completions; return one each"
        )
    for index, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} returned {value} for completion {index}; return a number or None")
    return values


def source_of(code: Any) -> str:
    """The file of a function or class, whole, for what it calls counts too; its name if there is none."""
    try:
        return Path(inspect.getsourcefile(code) or "").read_text(encoding="utf-8", errors="replace")
    except (OSError, TypeError):
        return str(getattr(code, "__qualname__", type(code).__qualname__))


def _is_function_of(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _told(error: BaseException) -> str:
    """Kind, first line and place of an error: the deepest place that is not in an installed package."""
    lines = str(error).strip().splitlines() or [""]
    told = f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{told} ({frames[-1].filename}:{frames[-1].lineno})" if frames else told


def _is_own(file: str) -> bool:
    """Whether a frame is in neither this package, the standard library nor an installed package."""
    foreign = (str(Path(__file__).parent), str(Path(importlib.__file__).parents[1]))
    return not file.startswith(("<", *foreign)) and "site-packages" not in file
