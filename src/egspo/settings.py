"""What a saved model was trained with, so that ``eval`` and ``sample`` can do the same without being told."""

import json
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.config import SamplerConfig, merge, parse_override
from egspo.policy import Policy, shipped_folder
from egspo.tasks.base import Task

FILE = "egspo.json"


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


def task_of(policy: Policy | None, name: str | None, data: Path | None, overrides: list[str]) -> Task:
    """The task to evaluate on: named, else the one the model was trained on, with that one's settings.

    Raises:
        ValueError: if no task is known or a setting is impossible.
    """
    saved = read_settings(policy).get("task", {}) if policy is not None else {}
    name = name or saved.get("name")
    if name is None:
        raise ValueError(f"--task: missing; known: {', '.join(registry.names('tasks'))}")
    values = saved if saved.get("name") == name else {"name": name}
    if data is not None:
        values = values | {"data": data}
    values = merge(values, _overrides("task", overrides))
    return registry.load_task(**values)


def samplers_of(policy: Policy, lengths: list[int], steps: int | None, overrides: list[str]) -> list[SamplerConfig]:
    """How to decode: as the model was trained, greedily, at each of the lengths asked for.

    A length of its own gets half as many steps, the field's habit, unless ``steps`` says otherwise.
    """
    base = merge(read_settings(policy).get("sampler", {}) | {"temperature": 0.0}, _overrides("sampler", overrides))
    if not lengths:
        return [SamplerConfig(**(base | ({"diffusion_steps": steps} if steps else {})))]
    block = SamplerConfig(**base).block_length
    return [
        SamplerConfig(
            **base
            | {"max_completion_length": n, "diffusion_steps": steps or max(1, n // 2), "block_length": min(block, n)}
        )
        for n in lengths
    ]


def _overrides(section: str, overrides: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        for key, value in parse_override(override).items():
            if key not in ("task", "sampler") or not isinstance(value, dict):
                raise ValueError(f"{override}: only task.NAME=value and sampler.NAME=value can be set here")
            if key == section:
                values = merge(values, value)
    return values
