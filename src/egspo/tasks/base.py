"""What a task is: problems in three splits, a prompt for each, and a grader that can be trusted."""

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from egspo.external import source_of
from egspo.hub import DatasetSplit, read_split
from egspo.records import Row, parse_rows, read_records
from egspo.sandbox import SandboxConfig
from egspo.splits import take_apart
from egspo.types import Grade, Prompt

SPLITS = ("train", "validation", "test")
PromptStyle = Literal["instruct", "compact", "paper"]


class TaskConfig(BaseModel):
    """Settings shared by all tasks; a task adds its own fields in a subclass named ``Config``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="file name of the task")
    path: Path | None = Field(None, description="Python file with one's own class Task, instead of a name")
    data: Path | None = Field(None, description="file of problems to use as the test split")
    seed: int = Field(0, ge=0, description="seed of generated problems and of the split")
    prompt: PromptStyle = Field(
        "instruct",
        description="instruct: a worded prompt for pretrained models; compact: the bare problem, for tiny "
        "ones; paper: the published prompt",
    )
    reward_weights: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="weights of the final reward's parts, over the task's defaults"
    )
    step_reward_weights: dict[str, FiniteFloat] | None = Field(
        None,
        description="weights of the step rewards' parts; default: the correctness parts of reward_weights",
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """The same file wherever a run is gone on with, or its model evaluated."""
        return None if path is None else path.resolve()

    @field_validator("data", "train_data", check_fields=False)
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}; give the path of a file of problems")
        return path


class GeneratedConfig(TaskConfig):
    """Settings of a task that generates its problems, and may read them from files instead."""

    num_train: int = Field(20_000, ge=1, description="generated to train on, unless train_data is given")
    num_validation: int = Field(500, ge=1, description="generated validation problems")
    num_test: int = Field(1_000, ge=1, description="generated test problems, unless data is given")
    train_data: Path | None = Field(None, description="file of training problems (.jsonl or .csv, also .gz)")


class DatasetConfig(TaskConfig):
    """Settings of a task whose problems are a published data set, fetched from the hub or read from files."""

    train_data: Path | None = Field(None, description="file of training problems (.jsonl, .json, .csv, .gz)")
    num_validation: int = Field(200, ge=1, description="taken out of training, if there is no such split")
    num_test: int = Field(200, ge=1, description="the same, where there is neither a test split nor data")


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
    prompts: ClassVar[tuple[PromptStyle, ...]] = ("instruct", "compact")
    """Styles of prompt that the task has."""
    independent: ClassVar[bool] = True
    """Whether a grade depends on its own completion alone: then a thread may grade a batch in parts."""
    paper_count: ClassVar[str | None] = None
    """The entry of ``Grade.counts`` whose share the published grader reports; None: right answers."""

    def __init__(self, config: TaskConfig):
        self.config = config
        if config.prompt not in self.prompts:
            raise ValueError(
                f"task.prompt: {self.name} has no prompt {config.prompt!r}; use {' or '.join(self.prompts)}"
            )
        self._loaded: dict[str, Sequence[Prompt]] = {}
        self._check_weights("reward_weights", config.reward_weights)
        self._check_weights("step_reward_weights", config.step_reward_weights or {})

    @property
    def max_number_token(self) -> int | None:
        """Tiny tokenizers made for this task have one token for each whole number up to this one."""
        return None

    @property
    def train_weights(self) -> Mapping[str, float]:
        """Shares of the training problems that a run sees, by their field ``task``; none but of a mix."""
        return {}

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

    def grade_all(self, completions: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """Judge many completions, each of a problem of its own; as `grade`, at once where that is faster."""
        return [self.grade(*pair) for pair in zip(completions, fields, strict=True)]

    def prepare(self, sandbox: SandboxConfig) -> None:  # noqa: B027 - most tasks execute nothing
        """Make ready to grade under these limits; called before any work begins.

        Raises:
            ValueError: if completions are to be executed, and nothing here can contain them.
        """

    @property
    def judges(self) -> Mapping[str, Any]:
        """What verdicts depend on besides completion, problem and `version`: limits, code of the user's."""
        if self.config.path is None:
            return {}
        settings = self.config.model_dump(mode="json", exclude={"path", "data", "train_data"})
        return {"code": source_of(type(self)), "settings": settings}

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
        grades = self.grade_all([p.solution for p in prompts], [p.fields for p in prompts])
        pairs = zip(prompts, grades, strict=True)
        return [f"{prompt.id}: {grade.reason}" for prompt, grade in pairs if not grade.correct]

    def _check_weights(self, key: str, weights: Mapping[str, float]) -> None:
        for name in weights:
            if name not in self.parts:
                raise ValueError(
                    f"task.{key}: {self.name} has no part {name!r}; its parts: {', '.join(self.parts)}"
                )


Problem = tuple[dict[str, Any], str | None]
"""Fields of a problem and its solution, if one is known."""


class ProblemTask(Task):
    """A task whose problems are fields of a row, a question about them and, if known, a solution."""

    told_apart_by: ClassVar[str] = ""

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

    def keys(self, split: str) -> list[Hashable]:
        """What tells each problem of a split from others, whatever its prompt or solution looks like."""
        return [self._key(prompt.fields) for prompt in self.load(split)]

    def apart(self, split: str) -> list[set[Hashable]]:
        """Of each problem, what none of another split has; `told_apart_by` names it if not the problem."""
        return [self._apart(prompt.fields) for prompt in self.load(split)]

    def _apart(self, fields: Mapping[str, Any]) -> set[Hashable]:
        """What no two problems of different splits may share, be they equal or not."""
        return {self._key(fields)}

    def _completion(self, solution: str) -> str:
        """A solution as the completion that SFT trains on."""
        return solution if self.config.prompt == "compact" else f"<answer>\n{solution}\n</answer>"

    def _read(self, path: Path, field: str, split: str) -> list[Prompt]:
        return self._prompts(read_records(path, f"task.{field}", lambda row: self._parse(row, split)))

    def _prompts(self, problems: Iterable[tuple[str, Problem | None]]) -> list[Prompt]:
        return [self._prompt(name, *problem) for name, problem in problems if problem is not None]

    def _prompt(self, name: str, fields: dict[str, Any], solution: str | None) -> Prompt:
        solution = None if solution is None else self._completion(solution)
        return Prompt(({"role": "user", "content": self._question(fields)},), fields, solution, name)


class GeneratedTask(ProblemTask):
    """A task that generates its problems; a file given as ``data`` or ``train_data`` replaces a split."""

    config: GeneratedConfig

    @abstractmethod
    def _generate(self, split: str) -> Sequence[Problem]:
        """The ``num_*`` problems of a split, none of which equals one of the splits after it.

        Raises:
            ValueError: if there are fewer, with the setting and how many there are.
        """

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
        return {key for other in later for key in self.keys(other)}


class DatasetTask(ProblemTask):
    """A task whose problems are a published data set, under its official name on the hub or in files.

    ``data`` holds the test problems and ``train_data`` those to train on; where only one is given, the other
    is not fetched. Splits that the source does not have are taken out of the training problems, by ``seed``,
    problems that share something all together; one that shares something with validation or test is dropped.
    """

    config: DatasetConfig
    Config = DatasetConfig
    prompts: ClassVar[tuple[PromptStyle, ...]] = ("instruct", "compact", "paper")
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]]
    """Data sets by split; a split may be put together of several, and may be missing."""

    def _load(self, split: str) -> list[Prompt]:
        if split == "test" and self._has_test:
            return self._source("data", self.config.data, "test")
        if split == "validation" and self._has_validation:
            return self._source("train_data", None, "validation")
        return self._taken_apart()[split]

    @property
    def _has_test(self) -> bool:
        return self.config.data is not None or (self.config.train_data is None and "test" in self.hub)

    @property
    def _has_validation(self) -> bool:
        return self.config.train_data is None and "validation" in self.hub

    def _source(self, field: str, path: Path | None, split: str) -> list[Prompt]:
        if path is not None:
            return self._read(path, field, split)
        if split not in self.hub:
            raise ValueError(
                f"task.{field}: {self.name} has no {split} problems of its own; give a file of them"
            )
        rows = [row for part in self.hub[split] for row in read_split(part, f"task.{field}")]
        return self._prompts(parse_rows(rows, lambda row: self._parse(row, split), f"task.{field}: "))

    def _taken_apart(self) -> dict[str, list[Prompt]]:
        """The training problems, less those taken out of them for validation and test."""
        config = self.config
        own = (("test", self._has_test), ("validation", self._has_validation))
        known = {mark for split, has in own if has for marks in self.apart(split) for mark in marks}
        given = self._source("train_data", config.train_data, "train")
        new = [prompt for prompt in given if known.isdisjoint(self._apart(prompt.fields))]
        problems = list({self._key(prompt.fields): prompt for prompt in new}.values())
        sizes = {
            "validation": 0 if self._has_validation else config.num_validation,
            "test": 0 if self._has_test else config.num_test,
        }
        marks = [self._apart(prompt.fields) for prompt in problems]
        splits = take_apart(marks, sizes, "train", random.Random(f"{config.seed} {self.name}"))
        if not splits["train"]:
            raise ValueError(
                f"task.num_validation: {sizes['validation']} (and {sizes['test']} for test) of "
                f"{len(problems)} training problems leave none to train on; lower them, or give more problems"
            )
        return {name: [problems[i] for i in indices] for name, indices in splits.items()}
