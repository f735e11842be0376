"""Prompts in a file, rewarded by a function of the user's: ``f(prompts, completions, **columns)``, as in TRL.

A row has ``prompt`` (a text or chat messages) or ``messages``. What SFT learns from is its ``completion``,
else the assistant's message that ``messages`` ends with, else a ``solution``. All columns but ``prompt``,
``messages`` and ``completion`` go to the function, named in lower case.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from egspo import answers
from egspo.external import call_reward, import_function, source_of
from egspo.hub import DatasetSplit
from egspo.records import Row, chat_messages
from egspo.tasks import base
from egspo.tasks.base import DatasetConfig, Part, Problem, PromptStyle
from egspo.types import Grade, Prompt

_ARGUMENTS = ("prompts", "completions")
_NO_COLUMNS = ("prompt", "messages", "completion", "generation")


class Config(DatasetConfig):
    """Files of prompts, and the function that rewards completions."""

    reward: str = Field(description="module:function or file.py:function with TRL's signature")
    correct_at: float = Field(
        1.0, allow_inf_nan=False, description="a completion is correct from this reward on"
    )

    @field_validator("reward")
    @classmethod
    def _absolute_file(cls, reward: str) -> str:
        """The same file wherever a run is gone on with, or its model evaluated."""
        file, colon, name = reward.rpartition(":")
        return f"{Path(file).resolve()}:{name}" if colon and file.endswith(".py") else reward


class Task(base.DatasetTask):
    """One's own prompts in a file, rewarded by a function of one's own."""

    name = "custom"
    description = "prompts in a file, rewarded by a function f(prompts, completions, **columns) of one's own"
    version = "1"
    source = "the user's own; signature of TRL's reward functions"
    parts: ClassVar[Mapping[str, Part]] = {"reward": Part("what the function returns", 1.0)}
    independent = False  # the function may compare completions
    grade_fields = ()
    Config = Config
    prompts: ClassVar[tuple[PromptStyle, ...]] = ("instruct",)
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {}

    def __init__(self, config: Config):
        super().__init__(config)
        self._function = import_function(config.reward, "task.reward")

    @property
    def judges(self) -> Mapping[str, Any]:
        return {**super().judges, "correct_at": self.config.correct_at, "reward": source_of(self._function)}

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        return self.grade_all([completion], [fields])[0]

    def grade_all(self, completions: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """As `grade`, in one call of the function.

        Raises:
            ValueError: as `grade`, and if the function raises or returns no rewards.
        """
        if not completions:
            return []
        prompts = [_conversation(row)[0] for row in fields]
        texts = [answers.before_end(completion) for completion in completions]
        columns = [{key: row[key] for key in row if key not in _NO_COLUMNS} for row in fields]
        name = f"task.reward: {self.config.reward}"
        values = call_reward(self._function, name, prompts, texts, columns)
        return [self._verdict(*pair) for pair in zip(texts, values, strict=True)]

    def _verdict(self, text: str, value: float | None) -> Grade:
        if value is None:
            return Grade(False, {}, text, "the reward function does not apply")
        bound = self.config.correct_at
        reason = f"reward {value:g}, correct from {bound:g} on"
        return Grade(value >= bound, {"reward": value}, text, reason)

    def _parse(self, row: Row, split: str) -> Problem:
        messages, completion = _conversation(row)
        columns = {key: value for key, value in row.items() if key not in _NO_COLUMNS}
        for name in _ARGUMENTS:
            if name in columns:
                raise ValueError(f"{name}: is an argument of every reward function; rename the column")
        return {"messages": messages, **columns}, completion

    def _key(self, fields: Mapping[str, Any]) -> str:
        """The whole row: one prompt may stand in several, with other columns."""
        return json.dumps(fields, sort_keys=True, default=str)

    def _apart(self, fields: Mapping[str, Any]) -> set[Hashable]:
        return {json.dumps(fields["messages"])}

    def _question(self, fields: Mapping[str, Any]) -> str:
        return fields["messages"][-1]["content"]

    def _prompt(self, name: str, fields: dict[str, Any], solution: str | None) -> Prompt:
        return Prompt(tuple(fields["messages"]), fields, solution, name)


def _conversation(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str | None]:
    """The messages of a row's prompt, and what SFT learns to answer.

    Raises:
        ValueError: if there is no prompt, or a completion that is no text.
    """
    given = row.get("messages") or row.get("prompt")
    text = isinstance(given, str) and given
    messages = chat_messages([{"role": "user", "content": given}] if text else given)
    completion, solution = row.get("completion"), row.get("solution")
    if messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        completion = last["content"] if completion is None else completion
    if not messages:
        raise ValueError("prompt: missing; give a text, or chat messages with role and content")
    if isinstance(completion, list):
        completion = next((message["content"] for message in chat_messages(completion)), completion)
    if completion is not None and not isinstance(completion, str):
        raise ValueError(f"completion: {completion!r:.40} is no text; give one, or leave it out")
    if completion is None and isinstance(solution, str):
        completion = solution
    return messages, completion
