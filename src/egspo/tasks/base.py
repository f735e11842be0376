"""What a task is: problems in three splits, a prompt for each, and a grader that can be trusted."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from egspo.types import Grade, Prompt

SPLITS = ("train", "validation", "test")


class TaskConfig(BaseModel):
    """Settings shared by all tasks; a task adds its own fields in a subclass named ``Config``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="file name of the task")
    data: Path | None = Field(None, description="file of problems to use as the test split")
    seed: int = Field(0, description="seed of generated problems and of the split")
    prompt: Literal["instruct", "compact"] = Field(
        "instruct", description="instruct: a worded prompt for pretrained models; compact: symbols only, for tiny ones"
    )
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="weights of the final reward's parts, over the task's defaults"
    )
    step_reward_weights: dict[str, float] | None = Field(
        None, description="weights of the step rewards' parts; default: the correctness parts of reward_weights"
    )

    @field_validator("data")
    @classmethod
    def _exists(cls, data: Path | None) -> Path | None:
        if data is not None and not data.is_file():
            raise ValueError(f"no such file: {data}; give the path of a file of problems")
        return data


@dataclass(frozen=True)
class Part:
    """A reward part: what it measures, its default weight, and whether it judges the answer or its form."""

    description: str
    weight: float
    kind: Literal["correctness", "format"] = "correctness"


class Task(ABC):
    """A benchmark. A subclass is named ``Task`` in a file named as the task; ``Config`` is its settings."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One line for ``egspo list tasks``."""
    version: ClassVar[str]
    """Raised whenever a grade or a prompt can come out differently."""
    source: ClassVar[str]
    """Where the rules come from: paper, data set."""
    parts: ClassVar[Mapping[str, Part]]
    grade_fields: ClassVar[tuple[str, ...]]
    """Fields, besides ``generation``, that a line of ``egspo grade`` input needs."""
    max_number_token: ClassVar[int | None] = None
    """Tiny tokenizers made for this task have one token for each whole number up to this one."""
    Config: ClassVar[type[TaskConfig]] = TaskConfig

    def __init__(self, config: TaskConfig):
        self.config = config
        self._check_weights("reward_weights", config.reward_weights)
        self._check_weights("step_reward_weights", config.step_reward_weights or {})

    @abstractmethod
    def load(self, split: str) -> Sequence[Prompt]:
        """Problems of ``train``, ``validation`` or ``test``: the same list each time for the same settings.

        Raises:
            ValueError: for a missing or broken file (with file and line) or an impossible setting.
        """

    @abstractmethod
    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        """Judge a completion. Never raises for what a model may write, whatever it is.

        Raises:
            ValueError: if ``fields`` (data, not model output) are not the task's.
        """

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        """Judge as the published grader of d1 (arXiv 2504.12216) does, quirks included."""
        raise ValueError(f"--grader: task {self.name!r} has no published grader; use --grader default")

    @property
    def reward_weights(self) -> dict[str, float]:
        return {name: self.config.reward_weights.get(name, part.weight) for name, part in self.parts.items()}

    @property
    def step_reward_weights(self) -> dict[str, float]:
        """Correctness parts of the final reward, unless set: format points say nothing of a state's value."""
        if self.config.step_reward_weights is not None:
            return {name: self.config.step_reward_weights.get(name, 0.0) for name in self.parts}
        weights = self.reward_weights
        return {name: weights[name] * (part.kind == "correctness") for name, part in self.parts.items()}

    def validate(self, split: str = "test", limit: int | None = None) -> list[str]:
        """Complaints about gold answers that the grader refuses; empty if all is well."""
        prompts = [prompt for prompt in self.load(split)[:limit] if prompt.solution is not None]
        grades = [(prompt, self.grade(prompt.solution, prompt.fields)) for prompt in prompts]
        return [f"{prompt.id}: {grade.reason}" for prompt, grade in grades if not grade.correct]

    def _check_weights(self, key: str, weights: Mapping[str, float]) -> None:
        for name in weights:
            if name not in self.parts:
                raise ValueError(f"task.{key}: {self.name} has no part {name!r}; its parts: {', '.join(self.parts)}")
