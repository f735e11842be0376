"""Objectives and tasks are found by file name: adding one is adding a file to its folder.

A task may also be a file of the user's, found by its path.
"""

import difflib
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

from egspo.external import import_file

KINDS = {"objectives": "Objective", "tasks": "Task"}
ATTRIBUTES = ("name", "description", "version", "source", "parts", "grade_fields")
"""What a task says of itself."""


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
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def task_class(name: Any, path: Any = None) -> type:
    """The class of a task: of the package by its name, or of the user by the path of its file.

    Both may be whatever a configuration holds; None is neither.

    Raises:
        ValueError: for an unknown name, or a file that defines no task, with what it lacks.
    """
    if path is None:
        if name is None:
            raise ValueError(f"task.name: missing; known: {', '.join(names('tasks'))}")
        return load("tasks", name)
    if not isinstance(path, str | Path):
        raise ValueError(f"task.path: {path!r}; give the path of a Python file with a class Task")
    task = _own_task(Path(path))
    if name not in (None, task.name):
        raise ValueError(f"task.name: {name!r}, but the task of {path} is {task.name!r}; drop task.name")
    return task


def make_task(config):
    """The task of a checked section ``task``.

    Raises:
        ValueError: for a setting that is impossible for this task.
    """
    return task_class(config.name, config.path)(config)


def load_task(name: str | None = None, **settings: Any):
    """A task by name, or by the ``path`` of a file, with its settings (those of the ``task`` section).

    Raises:
        ValueError: for an unknown name or an impossible setting.
    """
    task = task_class(name, settings.get("path"))
    return task(task.Config(name=task.name, **settings))


def _own_task(path: Path) -> type:
    module = import_file(path, "task.path")
    if problem := _task_problem(module):
        raise ValueError(f"task.path: {path}: {problem}")
    return module.Task


def _task_problem(module) -> str | None:
    """What keeps a user's file from being a task, and the remedy."""
    base = importlib.import_module("egspo.tasks.base")
    task = getattr(module, "Task", None)
    if not (isinstance(task, type) and issubclass(task, base.Task)) or task.__module__ != module.__name__:
        return "has no class Task; write `class Task(base.Task)` after `from egspo.tasks import base`"
    if task.__abstractmethods__:
        return f"class Task lacks the methods {', '.join(sorted(task.__abstractmethods__))}; write them"
    if lacking := [name for name in ATTRIBUTES if not hasattr(task, name)]:
        return f"class Task lacks {', '.join(lacking)}; set them as in egspo.tasks.base.Task"
    if (
        not isinstance(task.name, str)
        or not re.fullmatch(r"[\w.-]+", task.name)
        or task.name in names("tasks")
    ):
        return f"Task.name is {task.name!r}; use letters, digits, '-', '_' or '.', and no name of egspo's own"
    if not task.parts or not all(isinstance(part, base.Part) for part in dict(task.parts).values()):
        return "Task.parts is no mapping from names to egspo.tasks.base.Part; give at least one"
    if not (isinstance(task.Config, type) and issubclass(task.Config, base.TaskConfig)):
        return "Task.Config is no subclass of egspo.tasks.base.TaskConfig; derive it from that"
    if getattr(module, "Config", task.Config) is not task.Config:
        return "has a class Config that Task does not use; write `Config = Config` in Task"
    return None
