"""What a saved model was trained with, so that ``eval`` and ``sample`` can do the same without being told."""

import json
import re
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.compose import merge, parse_override
from egspo.config import RLRun, SamplerConfig, parse_section
from egspo.models.source import shipped_folder
from egspo.policy import Policy
from egspo.tasks.base import Task

FILE = "egspo.json"
SECTIONS = ("task", "sampler", "sandbox")
"""What can be set where a model is used as it was saved."""
MOST_NUMBERS = 10_000
"""Of a range given as FIRST-LAST."""


def save_settings(folder: Path, task: Task | None, sampler: SamplerConfig, about: dict[str, Any]) -> None:
    """Write task, sampler and a few words about the training beside the weights."""
    values = {
        "task": {} if task is None else json.loads(task.config.model_dump_json(exclude={"data"})),
        "sampler": sampler.model_dump(),
        "about": about,
    }
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_settings(policy: Policy) -> dict[str, Any]:
    """The settings saved with a policy's weights; empty for a model that is not ours."""
    return {} if policy.folder is None else _read(policy.folder)


def shipped_settings(name: str) -> dict[str, Any]:
    """The settings of a model in the package."""
    return _read(shipped_folder(name))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def task_of(
    policy: Policy | None,
    name: str | None,
    data: Path | None,
    overrides: list[str],
    allow_unsafe: bool = False,
) -> Task:
    """The task to evaluate on: named, else the one the model was trained on, with that one's settings.

    Without a policy there is nothing to sample, and no setting of the sampler is known.

    Raises:
        ValueError: if no task is known, a setting is impossible, or the task cannot be graded here.
    """
    saved = read_settings(policy).get("task", {}) if policy is not None else {}
    name = name or saved.get("name")
    if name is None:
        raise ValueError(f"--task: missing; known: {', '.join(registry.names('tasks'))}")
    values = saved if saved.get("name") == name else {"name": name}
    if data is not None:
        values = values | {"data": data}
    sections = ("task", "sandbox") if policy is None else SECTIONS
    given = _overrides(overrides, sections)
    config = parse_section(RLRun, "task", merge(values, given["task"]))
    task = registry.load("tasks", config.name)(config)
    unsafe = {"allow_unsafe": True} if allow_unsafe else {}
    task.prepare(parse_section(RLRun, "sandbox", given["sandbox"] | unsafe))
    return task


def samplers_of(
    policy: Policy, lengths: list[int], steps: int | None, overrides: list[str]
) -> list[SamplerConfig]:
    """How to decode: as the model was trained, greedily, at each of the lengths asked for.

    A length of its own gets half as many steps, the field's habit, unless ``steps`` says otherwise.

    Raises:
        ValueError: for an impossible setting, or one that is given twice.
    """
    saved = read_settings(policy).get("sampler", {})
    given = _overrides(overrides)["sampler"]
    twice = {"--length": (lengths, "max_completion_length"), "--steps": (steps, "diffusion_steps")}
    for option, (value, key) in twice.items():
        if value and key in given:
            raise ValueError(f"{option}: {value} with sampler.{key}={given[key]}; give one of the two")
    if steps is not None:
        given = given | {"diffusion_steps": steps}
    base = merge(saved | {"temperature": 0.0}, given)
    if not lengths:
        return [_sampler(base)]
    block = base.get("block_length", SamplerConfig().block_length)
    return [
        _sampler(
            base
            | {"max_completion_length": n, "diffusion_steps": max(1, n // 2)}
            | ({"block_length": min(block, n)} if isinstance(block, int) else {})
            | given
        )
        for n in lengths
    ]


def whole_numbers(text: str, field: str) -> list[int]:
    """Numbers written as ``0-4`` or ``1,5,10``.

    Raises:
        ValueError: naming ``field`` for anything else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_NUMBERS:
            raise ValueError(f"{field}: {text!r}; give whole numbers such as 0-4 or 1,5,10")
        numbers += range(first, last + 1)
    return numbers


def _sampler(values: dict[str, Any]) -> SamplerConfig:
    return parse_section(RLRun, "sampler", values)


def _overrides(overrides: list[str], sections: tuple[str, ...] = SECTIONS) -> dict[str, dict[str, Any]]:
    """Settings given as ``SECTION.NAME=value``, by section.

    Raises:
        ValueError: for any other setting.
    """
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for override in overrides:
        parsed = parse_override(override)
        for key, value in parsed.items():
            if key not in sections or not isinstance(value, dict):
                known = " or ".join(f"{section}.NAME=value" for section in sections)
                raise ValueError(f"{override}: only {known} can be set here")
        values = merge(values, parsed)
    return values
