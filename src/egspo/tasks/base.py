"""What a task is: problems in three splits, a prompt for each, and a grader that can be trusted."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from egspo.records import Row, read_records
from egspo.types import Grade, Prompt

SPLITS = ("train", "validation", "test")


class TaskConfig(BaseModel):
    """Settings shared by all tasks; a task adds its own fields in a subclass named ``Config``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="file name of the task")
    data: Path | None = Field(None, description="file of problems to use as the test split")
    seed: int = Field(0, ge=0, description="seed of generated problems and of the split")
    prompt: Literal["instruct", "compact"] = Field(
        "instruct",
        description="instruct: a worded prompt for pretrained models; compact: symbols only, for tiny ones",
    )
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="weights of the final reward's parts, over the task's defaults"
    )
    step_reward_weights: dict[str, float] | None = Field(
        None,
        description="weights of the step rewards' parts; default: the correctness parts of reward_weights",
    )

    @field_validator("data", "train_data", check_fields=False)
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}; give the path of a file of problems")
        return path


class GeneratedConfig(TaskConfig):
    """Settings of a task that generates its problems, and may read them from files instead."""

    num_train: int = Field(
        20_000, ge=1, description="generated training problems, unless train_data is given"
    )
    num_validation: int = Field(500, ge=1, description="generated validation problems")
    num_test: int = Field(1_000, ge=1, description="generated test problems, unless data is given")
    train_data: Path | None = Field(None, description="file of training problems (.jsonl or .csv, also .gz)")


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
    Config: ClassVar[type[TaskConfig]] = TaskConfig

    def __init__(self, config: TaskConfig):
        self.config = config
        self._loaded: dict[str, Sequence[Prompt]] = {}
        self._check_weights("reward_weights", config.reward_weights)
        self._check_weights("step_reward_weights", config.step_reward_weights or {})

    @property
    def max_number_token(self) -> int | None:
        """Tiny tokenizers made for this task have one token for each whole number up to this one."""
        return None

    def load(self, split: str) -> Sequence[Prompt]:
        """Problems of ``train``, ``validation`` or ``test``: the same list each time for the same settings,
        made once.

        Raises:
            ValueError: for an unknown split, a broken file (with file and line) or an impossible setting.
        """
        if split not in SPLITS:
            raise ValueError(f"split: {split!r} is unknown; give one of {', '.join(SPLITS)}")
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    @abstractmethod
    def _load(self, split: str) -> Sequence[Prompt]:
        """What `load` returns; the split is a known one."""

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
                raise ValueError(
                    f"task.{key}: {self.name} has no part {name!r}; its parts: {', '.join(self.parts)}"
                )


Problem = tuple[dict[str, Any], str | None]
"""Fields of a problem and its solution, if one is known."""


class GeneratedTask(Task):
    """A task that generates its problems; a file given as ``data`` or ``train_data`` replaces a split."""

    config: GeneratedConfig

    @abstractmethod
    def _generate(self, split: str) -> Sequence[Problem]:
        """The ``num_*`` problems of a split, none of which equals one of the splits after it.

        Raises:
            ValueError: if there are fewer, with the setting and how many there are.
        """

    @abstractmethod
    def _parse(self, row: Row, split: str) -> Problem | None:
        """The problem of a row of a file; None for one that the settings leave out.

        Raises:
            ValueError: for a row that holds no problem.
        """

    @abstractmethod
    def _key(self, fields: Mapping[str, Any]) -> Hashable:
        """What two equal problems have in common."""

    @abstractmethod
    def _question(self, fields: Mapping[str, Any]) -> str:
        """The prompt's text, in the style of the settings."""

    def _load(self, split: str) -> list[Prompt]:
        if split == "test" and self.config.data is not None:
            return self._read(self.config.data, "data", split)
        if split == "train" and self.config.train_data is not None:
            return self._train_prompts(self.config.train_data)
        return [self._prompt(f"{split}-{i}", *problem) for i, problem in enumerate(self._generate(split))]

    def _train_prompts(self, path: Path) -> list[Prompt]:
        held_out = self._held_out("train")
        prompts = [p for p in self._read(path, "train_data", "train") if self._key(p.fields) not in held_out]
        if not prompts:
            raise ValueError(
                f"task.train_data: {path} has no problem that is not in validation or test; give more"
            )
        return prompts

    def _held_out(self, split: str) -> set[Hashable]:
        """Keys of the problems of the splits after this one."""
        later = SPLITS[SPLITS.index(split) + 1 :]
        return {self._key(prompt.fields) for other in later for prompt in self.load(other)}

    def _read(self, path: Path, field: str, split: str) -> list[Prompt]:
        problems = read_records(path, f"task.{field}", lambda row: self._parse(row, split))
        return [self._prompt(name, *problem) for name, problem in problems if problem is not None]

    def _prompt(self, name: str, fields: dict[str, Any], solution: str | None) -> Prompt:
        if solution is not None and self.config.prompt == "instruct":
            solution = f"<answer>\n{solution}\n</answer>"
        return Prompt(({"role": "user", "content": self._question(fields)},), fields, solution, name)
