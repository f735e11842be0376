"""Composition of settings: YAML files from left to right, then ``key.sub=value``, into one dictionary."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from egspo import registry


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files (or names of recipes) and ``key=value`` settings of a command line."""
    files = [argument for argument in arguments if "=" not in argument or Path(argument).is_file()]
    return files, [argument for argument in arguments if argument not in files]


def compose(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Files (or names of shipped recipes), each over what stands left of it, and all overrides over them.

    Raises:
        ConfigError: for every file that is missing or broken and every override that is not ``key=value``.
    """
    problems: list[str] = []
    files = _merge_all(_read_recipe, paths, problems)
    given = _merge_all(parse_override, overrides, problems)
    merged = _merge_all(lambda values: values, [files, given], problems)
    if problems:
        raise ConfigError(problems)
    return merged


def _merge_all(
    read: Callable[[Any], dict[str, Any]], sources: Sequence[Any], problems: list[str]
) -> dict[str, Any]:
    """What is read from each source over that from the one before; what is wrong is added to ``problems``."""
    merged: dict[str, Any] = {}
    for source in sources:
        try:
            merged = merge(merged, read(source))
        except ConfigError as error:
            problems += error.problems
    return merged


def _read_recipe(path: str | Path) -> dict[str, Any]:
    return read_yaml(find_recipe(path))


def merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """``right`` over ``left``, mappings merged key by key, and entries of a list by their number.

    A mapping under another ``name`` (of a task, an objective) begins afresh: the keys of one objective mean
    nothing to the next.

    Raises:
        ConfigError: for an entry that the list does not have.
    """
    merged = dict(left)
    for key, value in right.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            renamed = "name" in old and value.get("name", old["name"]) != old["name"]
            merged[key] = value if renamed else merge(old, value)
        elif isinstance(value, dict) and value and isinstance(old, list) and all(_is_place(k) for k in value):
            merged[key] = _merge_entries(key, old, value)
        else:
            merged[key] = value
    return merged


def _is_place(key: Any) -> bool:
    return re.fullmatch("[0-9]+", str(key)) is not None


def _merge_entries(key: str, left: list[Any], right: dict[Any, Any]) -> list[Any]:
    """A list with some of its entries changed: ``task.tasks.0.seed=1`` changes the first."""
    merged = list(left)
    for place, value in right.items():
        if int(place) >= len(left):
            raise ConfigError([f"{key}.{place}: there are {len(left)} of them, numbered from 0"])
        old = left[int(place)]
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[int(place)] = merge(old, value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of sections that a file holds.

    Raises:
        ConfigError: if it is not YAML (with the line), or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML ({_reason(error)}); mend the file"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: holds no mapping of sections; write SECTION: {{KEY: VALUE}}"])
    return values


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=value`` as a nested dictionary; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError([f"{text!r}: neither a configuration file nor KEY=VALUE"])
    try:
        nested: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ConfigError([f"{key}: value {value!r} is not valid YAML; quote it"]) from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-4 is the number that a user means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _reason(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).splitlines()[0]
    return (
        f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error.context}"
    )


def recipe_folder() -> Path:
    """The recipes of an installed package, else those of the checkout it runs from."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def recipes() -> dict[str, Path]:
    """Shipped recipes by name. The files for ``accelerate launch`` are none of ours."""
    folder = recipe_folder()
    files = (path for path in sorted(folder.rglob("*.yaml")) if path.parent.name != "accelerate")
    return {str(path.relative_to(folder).with_suffix("")): path for path in files}


def find_recipe(path: str | Path) -> Path:
    """A file, or a shipped recipe by its name (``sudoku/rl``)."""
    path = Path(path)
    if path.is_file():
        return path
    known, name = recipes(), str(path).removesuffix(".yaml")
    if name in known:
        return known[name]
    raise ConfigError([f"{path}: no such file or recipe{registry.suggest(str(path), known)}"])
