"""Several tasks in one run, by weights.

``tasks`` lists the settings of each as they would stand alone, with a ``weight`` and, where two share a
name, a ``label``. Problems carry the label of their task in the field ``task``; parts and counts begin with
it. Weights are shares of the training problems that a run sees (`egspo.data.Problems.order`); validation and
test have every problem of every task, spread evenly, so that the first n have the shares of the whole.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from egspo import registry
from egspo.sandbox import SandboxConfig
from egspo.tasks import base
from egspo.tasks.base import Part, PromptStyle, TaskConfig
from egspo.types import Grade, Prompt

_SETTING = re.compile(r"(?<![\w./])task\.(?=[a-z_])")


class Entry(BaseModel):
    """What a task in a mix has beside its own settings."""

    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of the training problems, relative to the others'"
    )
    label: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="name of the task in the mix; default: its own name"
    )


@cache
def _entry_kind(kind: type[TaskConfig]) -> type[TaskConfig]:
    """The settings of a task with those of an entry."""
    if taken := {*Entry.model_fields} & {*kind.model_fields}:
        raise ValueError(f"task.{min(taken)}: is a setting of the task's own, so that it cannot be mixed")
    return type("Config", (Entry, kind), {"__module__": __name__, "__doc__": kind.__doc__})


def _entry(value: Any) -> TaskConfig:
    """The settings of one task of a mix; complaints stand at the keys that they are about."""
    if isinstance(value, Entry):
        return value
    if not isinstance(value, dict):
        raise ValueError("not a section; write {name: NAME, weight: 1}")
    known: list[str] = []
    try:
        task = registry.task_class(value.get("name"), value.get("path"))
        if task is Task:
            raise ValueError("task.name: a mix holds no mix; list its tasks beside the others")
        kind = _entry_kind(task.Config)
        known = [*kind.model_fields]
        return kind.model_validate({**value, "name": task.name})
    except ValidationError as error:
        items = [_with_known(item, known) for item in error.errors()]
        raise ValidationError.from_exception_data("task", items) from None
    except ValueError as error:
        key, _, message = str(error).removeprefix("task.").partition(": ")
        raise _complaint((key,), message) from None


def _with_known(item: Mapping[str, Any], known: Sequence[str]) -> InitErrorDetails:
    """A complaint about an unknown key knows which there are."""
    ctx = {"known": known} if item["type"] == "extra_forbidden" else {}
    # The text is given whole: a template would read braces in it.
    kind = PydanticCustomError(item["type"], "{text}", {"text": item["msg"], **ctx})
    return InitErrorDetails(type=kind, loc=item["loc"], input=item["input"])


def _complaint(place: tuple[int | str, ...], message: str) -> ValidationError:
    kind = PydanticCustomError("value_error", "{text}", {"text": message})
    return ValidationError.from_exception_data("task", [InitErrorDetails(type=kind, loc=place, input={})])


class Config(TaskConfig):
    """The tasks of a mix, each with settings of its own."""

    tasks: list[Annotated[SerializeAsAny[TaskConfig], BeforeValidator(_entry)]] = Field(
        min_length=1, description="settings of each task, with weight and label"
    )
    seed: int | None = Field(None, ge=0, description="seed of all tasks, over their own")
    prompt: PromptStyle | None = Field(None, description="prompt of all tasks, over their own")

    @model_validator(mode="before")
    @classmethod
    def _of_all(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("tasks"), list | tuple):
            return values
        shared = {key: values[key] for key in ("seed", "prompt") if values.get(key) is not None}
        tasks = [{**task, **shared} if isinstance(task, dict) else task for task in values["tasks"]]
        return {**values, "tasks": tasks}

    @field_validator("tasks")
    @classmethod
    def _told_apart(cls, tasks: list[TaskConfig]) -> list[TaskConfig]:
        labels = [_label(task) for task in tasks]
        for place, label in enumerate(labels):
            if label in labels[:place]:
                raise _complaint((place, "label"), f"two tasks are called {label!r}; give this one another")
        return tasks

    @field_validator("data")
    @classmethod
    def _no_data(cls, data: Path | None) -> Path | None:
        if data is not None:
            raise ValueError("a mix reads no file; set data in the entries of task.tasks")
        return data

    @field_validator("reward_weights", "step_reward_weights")
    @classmethod
    def _no_weights(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if weights:
            raise ValueError(f"a mix has no part {min(weights)!r}; set weights in the entries of task.tasks")
        return weights


def _label(config: TaskConfig) -> str:
    return config.label or config.name


class Task(base.Task):
    """Several tasks in one run, by weights."""

    name = "mix"
    description = "several tasks in one run, by weights"
    version = "1"
    source = "those of its tasks"
    parts: ClassVar[Mapping[str, Part]] = {}
    grade_fields = ("task",)
    Config = Config
    prompts: ClassVar[tuple[PromptStyle | None, ...]] = (None, "instruct", "compact", "paper")

    def __init__(self, config: Config):
        self.tasks: dict[str, base.Task] = {}
        for place, entry in enumerate(config.tasks):
            with _placed(place):
                self.tasks[_label(entry)] = registry.make_task(entry)
        self.parts = {
            f"{label}/{name}": replace(part, weight=task.reward_weights[name])
            for label, task in self.tasks.items()
            for name, part in task.parts.items()
        }
        versions = ", ".join(f"{label} {task.version}" for label, task in self.tasks.items())
        self.version = f"{type(self).version} ({versions})"
        self.independent = all(task.independent for task in self.tasks.values())
        super().__init__(config)

    @property
    def max_number_token(self) -> int | None:
        numbers = [task.max_number_token for task in self.tasks.values()]
        return max((number for number in numbers if number is not None), default=None)

    @property
    def train_weights(self) -> Mapping[str, float]:
        return {_label(entry): entry.weight for entry in self.config.tasks}

    @property
    def step_reward_weights(self) -> dict[str, float]:
        return {
            f"{label}/{name}": weight
            for label, task in self.tasks.items()
            for name, weight in task.step_reward_weights.items()
        }

    def _load(self, split: str) -> list[Prompt]:
        """Every problem of every task; each task's are spread evenly over the list."""
        placed = []
        for place, (label, task) in enumerate(self.tasks.items()):
            with _placed(place):
                prompts = [_labelled(label, prompt) for prompt in task.load(split)]
            placed += [((i + 0.5) / len(prompts), place, prompt) for i, prompt in enumerate(prompts)]
        return [prompt for *_, prompt in sorted(placed, key=lambda one: one[:2])]

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        label, task, own = self._of(fields)
        return _prefixed(label, task.grade(completion, own))

    def grade_all(self, completions: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[Grade]:
        problems = [self._of(row) for row in fields]
        grades: dict[int, Grade] = {}
        for label, task in self.tasks.items():
            places = [place for place, problem in enumerate(problems) if problem[0] == label]
            if not places:
                continue
            found = task.grade_all([completions[i] for i in places], [problems[i][2] for i in places])
            grades |= {i: _prefixed(label, grade) for i, grade in zip(places, found, strict=True)}
        return [grades[place] for place in range(len(completions))]

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        label, task, own = self._of(fields)
        return _prefixed(label, task.paper_grade(completion, own))

    @property
    def judges(self) -> Mapping[str, Any]:
        return {label: task.judges for label, task in self.tasks.items()}

    def prepare(self, sandbox: SandboxConfig) -> None:
        for task in self.tasks.values():
            task.prepare(sandbox)

    def _of(self, fields: Mapping[str, Any]) -> tuple[str, base.Task, dict[str, Any]]:
        """Label, task and own fields of a problem."""
        label = fields.get("task")
        if not isinstance(label, str) or label not in self.tasks:
            raise ValueError(f"task: {label!r} is not in the mix; give one of {', '.join(self.tasks)}")
        return label, self.tasks[label], {key: value for key, value in fields.items() if key != "task"}


def _labelled(label: str, prompt: Prompt) -> Prompt:
    if "task" in prompt.fields:
        raise ValueError(f"task.name: {prompt.id} has a field 'task', which a mix has to set; rename that")
    return replace(prompt, fields={"task": label, **prompt.fields}, id=f"{label}/{prompt.id}")


def _prefixed(label: str, grade: Grade) -> Grade:
    """A verdict under its task's label, which counts as a finer measure of its own: accuracy by task."""
    parts = {f"{label}/{name}": value for name, value in grade.parts.items()}
    counts = {f"{label}/{name}": pair for name, pair in grade.counts.items()}
    return replace(grade, parts=parts, counts={label: (int(grade.correct), 1), **counts})


@contextmanager
def _placed(place: int) -> Iterator[None]:
    """Complaints of a task name its settings by their place in the mix."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_SETTING.sub(f"task.tasks.{place}.", str(error))) from error
