"""The smallest task on which a policy can learn something: repeat the first of two digits.

For tests and examples: a policy that writes random digits earns ``1 / num_symbols`` of the graded reward, and
a tiny model learns the rest within seconds. The second digit only tells the splits apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from egspo import answers
from egspo.tasks import base
from egspo.tasks.base import Part, TaskConfig
from egspo.types import Grade, Prompt


class Config(TaskConfig):
    """Size of the task. ``seed`` decides which pairs of digits go to which split."""

    num_symbols: int = Field(10, ge=3, le=10, description="digits 0, 1, … in use")
    width: int = Field(2, ge=1, le=1_000, description="characters of an answer")

    @field_validator("data")
    @classmethod
    def _no_data(cls, data: Path | None) -> Path | None:
        if data is not None:
            raise ValueError("the toy task reads no file; leave data out")
        return data


class Task(base.Task):
    """Repeat the first of two digits: a toy task."""

    name = "toy"
    description = "repeat the first of two digits, for tests and examples"
    version = "1"
    source = "made for this package"
    parts: ClassVar[Mapping[str, Part]] = {
        "match": Part("right positions over the length of the answer, or of the text if that is longer", 1.0),
        "exact": Part("1 for exactly the answer", 0.0),
    }
    grade_fields = ("answer",)
    Config = Config

    def _load(self, split: str) -> Sequence[Prompt]:
        """Pairs of digits by the difference of the two: 0 is test, 1 validation, the others train."""
        digits, shift = range(self.config.num_symbols), self.config.seed
        pairs = [(a, b, (b - a + shift) % self.config.num_symbols) for a in digits for b in digits]
        wanted = {"test": (0,), "validation": (1,), "train": digits[2:]}[split]
        return [self._prompt(f"{a}{b}") for a, b, difference in pairs if difference in wanted]

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        answer = fields.get("answer")
        if not isinstance(answer, str) or not answer:
            raise ValueError(f"answer: {answer!r}; give the expected text")
        text = answers.before_end(completion).strip()
        right = sum(a == b for a, b in zip(text, answer, strict=False))
        exact = text == answer
        parts = {"match": right / max(len(answer), len(text)), "exact": float(exact)}
        reason = "the answer" if exact else f"{right} of {len(answer)} characters right, {len(text)} written"
        return Grade(exact, parts, text, reason, {"symbols": (right, len(answer))})

    def _prompt(self, pair: str) -> Prompt:
        content = pair
        if self.config.prompt == "instruct":
            content = (
                f"Here are two digits: {pair}. Write the first one {self.config.width} times, nothing else."
            )
        answer = pair[0] * self.config.width
        return Prompt(({"role": "user", "content": content},), {"answer": answer}, answer, f"pair-{pair}")
