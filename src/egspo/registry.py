"""Objectives and tasks are found by file name: adding one is adding a file to its folder."""

import difflib
import importlib
import pkgutil

KINDS = {"objectives": "Objective", "tasks": "Task"}


def names(kind: str) -> list[str]:
    """Names of all objectives or tasks, that is of the modules in the folder but ``base``."""
    package = importlib.import_module(f"egspo.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def load(kind: str, name: str) -> type:
    """The class that a file defines under its folder's class name.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in names(kind):
        raise ValueError(f"{kind[:-1]}.name: unknown {kind[:-1]} {name!r}{suggest(name, names(kind))}")
    return getattr(importlib.import_module(f"egspo.{kind}.{name}"), KINDS[kind])


def suggest(word: str, known) -> str:
    """A half sentence that names the nearest known word, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def load_task(name: str, **settings):
    """A task by name, with its settings (those of the ``task`` section).

    Raises:
        ValueError: for an unknown name or an impossible setting.
    """
    task = load("tasks", name)
    return task(task.Config(name=name, **settings))
