"""Held-out problems that a model was trained on before: what it solves of them is no evidence.

Counted by what the splits of the task keep apart: problems, or their solutions.
"""

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
        known = {split: trained_on(earlier, task, split) for split in HELD_OUT}
    except (ValueError, OSError):  # a file is gone, or the hub does not answer
        return ""
    counts = [f"{sum(of)} of {len(of)} {split} problems" for split, of in known.items() if any(of)]
    if not counts:
        return ""
    # Which file was given as data is not saved with a model.
    then = {key: "not known" if key == "data" else there[key] for key in differing}
    settings = ", ".join(f"task.{key}: {then[key]} then, {here[key]} now" for key in differing)
    return f"the model was trained on {task.told_apart_by}{' and '.join(counts)} before ({settings})"


def trained_on(earlier: ProblemTask, task: ProblemTask, split: str) -> list[bool]:
    """Of each problem of a split, whether it has in common with one of training what no two splits share."""
    known = set().union(*earlier.apart("train"))
    return [not known.isdisjoint(of) for of in task.apart(split)]


def _earlier(saved: Mapping[str, Any], task: Task) -> ProblemTask | None:
    """The task that a model was trained on, if it is one like this, whose problems can be told apart."""
    known = saved.get("name") == task.name != CUSTOM and without_code(dict(saved)) == saved
    if not known or not isinstance(task, ProblemTask):
        return None
    try:
        return registry.make_task(parse_section(RLRun, "task", dict(saved)))
    except ValueError:  # settings of another version
        return None
