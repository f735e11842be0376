"""What a saved model was trained with, so that ``eval`` and ``sample`` can do the same without being told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.compose import merge, parse_override
from egspo.config import BaseRun, EvalConfig, ModelConfig, RLRun, SamplerConfig, parse_section
from egspo.hub import hub_repository
from egspo.models.adapters import adapter_folder
from egspo.models.source import locate, read_json, shipped_folder
from egspo.policy import FIELD, Policy
from egspo.tasks.base import Task, TaskConfig

FILE = "egspo.json"
SECTIONS = ("model", "task", "sampler", "sandbox")
"""What can be set where a model is used as it was saved."""
PRECISION = ("dtype", "bf16", "load_in_4bit")
"""What of the model can be."""
MIX, CUSTOM = "mix", "custom"
"""The tasks that hold other tasks, and that are rewarded by a function of the user's."""
MOST_NUMBERS = 10_000
"""Of a range given as FIRST-LAST."""


def save_settings(folder: Path, task: Task | None, config: BaseRun, about: dict[str, Any]) -> None:
    """Write task, sampler, validation, precision and a few words about the training beside the weights.

    Files are named from the root; a file given as ``data`` is no part of the training and left out.
    """
    values = {
        "task": {} if task is None else _saved_task(task.config),
        # What a likelihood counts is a matter of training.
        "sampler": config.sampler.model_dump(exclude={"score_positions"}),
        "eval": config.eval.model_dump(exclude={"limit"}),
        "model": config.model.model_dump(include=set(PRECISION)),
        "about": about,
    }
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _saved_task(config: TaskConfig) -> dict[str, Any]:
    values = _absolute(config.model_dump(mode="json"), config.model_dump())
    return each_task(values, lambda task: {key: value for key, value in task.items() if key != "data"})


def _absolute(plain: Any, typed: Any) -> Any:
    """Plain values in which those that are paths stand from the root."""
    if isinstance(typed, Path):
        return str(typed.resolve())
    if isinstance(typed, dict):
        return {key: _absolute(plain[key], value) for key, value in typed.items()}
    if isinstance(typed, list | tuple):
        return [_absolute(*pair) for pair in zip(plain, typed, strict=True)]
    return plain


def each_task(values: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The settings of a task changed, and of a mix those of each task in it too."""
    changed = change(values)
    if values.get("name") == MIX:
        changed["tasks"] = [change(entry) for entry in values["tasks"]]
    return changed


def without_code(
    task: dict[str, Any], is_meant: Callable[[Path], bool] = lambda file: True
) -> dict[str, Any]:
    """The settings of a task less the user's code that they name, or less that which is meant."""
    code = {"path": task.get("path"), "reward": None}
    if task.get("name") == CUSTOM:
        file = str(task.get("reward")).rpartition(":")[0]
        code["reward"] = file if file.endswith(".py") else file.replace(".", "/")
    dropped = [key for key, file in code.items() if file is not None and is_meant(Path(file))]
    return {key: value for key, value in task.items() if key not in dropped}


def read_settings(policy: Policy) -> dict[str, Any]:
    """The settings saved with a policy's weights; empty for a model that is not ours."""
    return {} if policy.folder is None else _read(policy.folder)


def shipped_settings(name: str) -> dict[str, Any]:
    """The settings of a model in the package."""
    return _read(shipped_folder(name))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return read_json(file, FIELD) if file.is_file() else {}


def saved_task(model: ModelConfig) -> dict[str, Any]:
    """The settings of the task whose problems a model or its adapter was trained on; empty if there is none:
    fresh, not ours, or fine-tuned on pairs of the user's, which a task may only have validated.

    Raises:
        ValueError: if there is no such model or adapter.
        Unreachable: if it is on the hub, which does not answer.
    """
    if model.init is not None:
        return {}
    folder = adapter_folder(model.adapter) if model.adapter else locate(model.model_name_or_path, FIELD)
    saved = _read(folder)
    return {} if saved.get("about", {}).get("own_pairs") else saved.get("task", {})


def precision_of(model: str, adapter: str | None, overrides: list[str]) -> dict[str, Any]:
    """In what a saved model shall compute: as it was trained, else as its weights are stored.

    Raises:
        ValueError: if there is no such model, or for another setting of it.
    """
    given = _overrides(overrides)["model"]
    for key in given:
        if key not in PRECISION:
            known = ", ".join(f"model.{name}" for name in PRECISION)
            raise ValueError(f"model.{key}: the model is used as it was saved; only {known} can be set here")
    folder = locate(model, FIELD) if adapter is None else adapter_folder(adapter)
    return {"dtype": "auto"} | _read(folder).get("model", {}) | given


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
    sections = ("task", "sandbox") if policy is None else SECTIONS
    given = _overrides(overrides, sections)
    values = merge(_task_values({} if policy is None else _trained_on(policy), name), given["task"])
    if data is not None:
        values = values | {"data": data}
    _require_code(values, name)
    task = registry.make_task(parse_section(RLRun, "task", values))
    unsafe = {"allow_unsafe": True} if allow_unsafe else {}
    task.prepare(parse_section(RLRun, "sandbox", given["sandbox"] | unsafe))
    return task


def _task_values(saved: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Settings of a task by its name or file: those a model was trained with, if it was trained on it."""
    if name is None:
        if "name" not in saved:
            raise ValueError(f"--task: missing; known: {', '.join(registry.names('tasks'))}")
        return saved
    given = {"path": name} if name.endswith(".py") else {}
    name = registry.task_class(None, name).name if given else name
    entries = saved.get("tasks", []) if saved.get("name") == MIX else []
    known = {entry[key]: entry for key in ("name", "label") for entry in entries if entry.get(key)}
    known |= {saved.get("name"): saved}
    found = {key: value for key, value in known.get(name, {}).items() if key not in ("weight", "label")}
    return {"name": name} | found | given


def _trained_on(policy: Policy) -> dict[str, Any]:
    """The settings of the task that a model was trained on.

    Code that they name is code that may have come with the model: from the hub, or in the model's folder.
    That is never run, and so never read from there.
    """
    saved, folder = read_settings(policy).get("task", {}), policy.folder
    if folder is None:
        return saved
    folder = folder.resolve()
    folder = folder.parent if folder.name == "model" else folder
    fetched = hub_repository(policy.source.split(" + ")[-1]) is not None

    def came_along(file: Path) -> bool:
        return fetched or file.resolve().is_relative_to(folder)

    return each_task(saved, lambda task: without_code(task, came_along))


def _require_code(values: dict[str, Any], given: str | None) -> None:
    """Raises ValueError if a model was trained on a task in a file that is not here."""
    name, path = values.get("name"), values.get("path")
    if given is None and name not in registry.names("tasks") and not (path and Path(path).is_file()):
        gone = f"in {path}, which is gone" if path else "in a file that does not come with it"
        raise ValueError(f"--task: the model was trained on {name!r} {gone}; give the file as --task FILE.py")


def samplers_of(
    policy: Policy, lengths: list[int], steps: int | None, overrides: list[str]
) -> list[SamplerConfig]:
    """How to decode: as the model was validated in training, else greedily, at each of the lengths asked for.

    A length of its own gets half as many steps, the field's habit, unless ``steps`` says otherwise.

    Raises:
        ValueError: for an impossible setting, or one that is given twice.
    """
    saved = read_settings(policy)
    given = _overrides(overrides)["sampler"]
    twice = {"--length": (lengths, "max_completion_length"), "--steps": (steps, "diffusion_steps")}
    for option, (value, key) in twice.items():
        if value and key in given:
            raise ValueError(f"{option}: {value} with sampler.{key}={given[key]}; give one of the two")
    if steps is not None:
        given = given | {"diffusion_steps": steps}
    base = merge(saved.get("sampler", {}) | _validation(saved).decoding(), given)
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


def eval_batch_size(policy: Policy) -> int:
    """Completions a forward pass, as in the validation of the model's training."""
    return _validation(read_settings(policy)).batch_size


def _validation(saved: dict[str, Any]) -> EvalConfig:
    return parse_section(RLRun, "eval", saved.get("eval", {}))


def whole_numbers(text: str, field: str) -> list[int]:
    """Numbers written as ``0-4`` or ``1,5,10``.

    Raises:
        ValueError: naming ``field`` for anything else, and for a number that comes twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_NUMBERS:
            raise ValueError(f"{field}: {text!r}; give whole numbers such as 0-4 or 1,5,10")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{field}: {text!r} has a number twice; give each once")
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
