"""Held-out problems that a model was trained on before: what it solves of them is no evidence."""

from collections.abc import Mapping
from typing import Any

from egspo import registry
from egspo.config import ModelConfig, RLRun, parse_section
from egspo.hub import Unreachable
from egspo.settings import CUSTOM, saved_task, without_code
from egspo.tasks.base import ProblemTask, Task

HELD_OUT = ("validation", "test")
IRRELEVANT = ("name", "path", "prompt", "reward_weights", "step_reward_weights")
"""Settings of a task that do not change which problems its splits hold."""


def seen_by(model: ModelConfig, task: Task) -> str:
    """`seen` of a configured model; empty too while the hub that has it does not answer."""
    try:
        return seen(saved_task(model), task)
    except Unreachable:
        return ""


def seen(saved: Mapping[str, Any], task: Task) -> str:
    """Which problems of validation and test a model was trained on, in words; empty if none, as far as known.

    Args:
        saved: the settings of the task that the model was trained on (`egspo.settings.saved_task`). They say
            nothing of what it was trained on before that, and code that they name is not run.
        task: the one to train or evaluate on now.
    """
    earlier = _earlier(saved, task)
    if earlier is None:
        return ""
    here, there = (of.config.model_dump(mode="json") for of in (task, earlier))
    differing = [key for key in here if key not in IRRELEVANT and here[key] != there[key]]
    if not differing:
        return ""
    try:
        trained_on = set(earlier.keys("train"))
        keys = {split: task.keys(split) for split in HELD_OUT}
    except (ValueError, OSError):  # a file is gone, or the hub does not answer
        return ""
    both = {split: sum(key in trained_on for key in keys[split]) for split in HELD_OUT}
    counts = [f"{both[split]} of {len(keys[split])} {split} problems" for split in HELD_OUT if both[split]]
    if not counts:
        return ""
    settings = ", ".join(f"task.{key}: {there[key]} then, {here[key]} now" for key in differing)
    return f"the model was trained on {' and '.join(counts)} before ({settings})"


def _earlier(saved: Mapping[str, Any], task: Task) -> ProblemTask | None:
    """The task that a model was trained on, if it is one like this, whose problems can be told apart."""
    known = saved.get("name") == task.name != CUSTOM and without_code(dict(saved)) == saved
    if not known or not isinstance(task, ProblemTask):
        return None
    try:
        return registry.make_task(parse_section(RLRun, "task", dict(saved)))
    except ValueError:  # settings of another version
        return None
