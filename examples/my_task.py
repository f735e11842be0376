"""A task of one's own, in one file: write digits in ascending order.

    egspo sft examples/my_task.yaml examples/my_task_sft.yaml
    egspo train examples/my_task.yaml examples/my_task_rl.yaml

docs/tasks/own.md goes through it. A completion is a text that a model wrote, so `grade` may meet anything.
"""

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from egspo import answers
from egspo.tasks import base
from egspo.tasks.base import GeneratedConfig, Part, Problem
from egspo.types import Grade

QUESTION = "Write the digits {} in ascending order, between <answer> and </answer> and without blanks."


class Config(GeneratedConfig):
    """Settings beside those that every task with generated problems has."""

    num_digits: int = Field(4, ge=2, le=6, description="digits to sort")


class Task(base.GeneratedTask):
    """Write digits in ascending order."""

    name = "sort-digits"
    description = "write digits in ascending order"
    version = "1"
    source = "an example of a task in a file"
    parts: ClassVar[Mapping[str, Part]] = {
        "sorted": Part("1 for exactly the sorted digits", 1.0),
        "places": Part("share of places with the right digit", 0.5),
        "same": Part("1 for the same digits in any order", 0.1, "format"),
    }
    grade_fields = ("digits",)
    Config = Config

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        wanted = "".join(sorted(_digits(fields)))
        text = answers.answer_or_text(completion, bare=self.config.prompt == "compact")
        text = "" if text is None else text.strip()
        right = sum(a == b for a, b in zip(text, wanted, strict=False))
        parts = {
            "sorted": float(text == wanted),
            "places": right / max(len(text), len(wanted)),
            "same": float(sorted(text) == list(wanted)),
        }
        return Grade(text == wanted, parts, text, f"{right} of {len(wanted)} places are right")

    def _generate(self, split: str) -> list[Problem]:
        """Problems of a split; ``_held_out`` are the keys of those of the splits after it."""
        num, length = getattr(self.config, f"num_{split}"), self.config.num_digits
        texts, held_out = [f"{n:0{length}}" for n in range(10**length)], self._held_out(split)
        free = [text for text in texts if text not in held_out]
        if len(free) < num:
            raise ValueError(f"task.num_{split}: {num}, but {len(free)} problems are left; lower it")
        chosen = random.Random(f"{self.config.seed} {split}").sample(free, num)
        return [({"digits": text}, "".join(sorted(text))) for text in chosen]

    def _parse(self, row: Mapping[str, Any], split: str) -> Problem:
        """The problem of a row of a file (``task.data``, ``task.train_data``)."""
        return {"digits": _digits(row)}, "".join(sorted(_digits(row)))

    def _key(self, fields: Mapping[str, Any]) -> str:
        return fields["digits"]

    def _question(self, fields: Mapping[str, Any]) -> str:
        return fields["digits"] if self.config.prompt == "compact" else QUESTION.format(fields["digits"])


def _digits(fields: Mapping[str, Any]) -> str:
    digits = fields.get("digits")
    if not isinstance(digits, str) or not digits.isdigit():
        raise ValueError(f"digits: {digits!r}; give the digits to sort as a text")
    return digits
