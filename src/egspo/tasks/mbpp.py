"""MBPP, sanitized: a function from one sentence and its tests (arXiv 2108.07732).

The official splits go by ``task_id``: 11-510 test, 511-600 validation, 601-974 train, 1-10 for few-shot
prompts. A file given as ``data`` may hold all of them, as the published ones do. The tests stand in the
prompt, as usual for this benchmark: they name the function.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from egspo.hub import DatasetSplit
from egspo.records import Row
from egspo.sandbox import Program
from egspo.tasks import code
from egspo.tasks.base import Problem
from egspo.types import Prompt

QUESTION = "{prompt}\n\nThe program has to pass these tests:\n```python\n{tests}\n```"
PUBLISHED = """\
You are a coding expert. You will be given a coding problem to solve. Solve it step by step. \
Ensure you wrap the answer in ```python````

Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
```python
Your code here
```
</answer>" 


{prompt}

 Your code should pass the following tests:

{tests}"""
"""Evaluation prompt of EGSPO's code (arXiv 2603.12554), stray marks included."""
OFFICIAL = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def _hub(split: str) -> tuple[DatasetSplit, ...]:
    return (DatasetSplit("google-research-datasets/mbpp", split, "sanitized"),)


class Task(code.Task):
    """Write a function from one sentence and three tests (MBPP sanitized, arXiv 2108.07732)."""

    name = "mbpp"
    description = "MBPP (sanitized): a function from one sentence and its tests"
    version = "1"
    source = "MBPP, arXiv 2108.07732"
    grade_fields: ClassVar[tuple[str, ...]] = ("test_list",)
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {split: _hub(split) for split in OFFICIAL}

    def _load(self, split: str) -> list[Prompt]:
        field = "data" if split == "test" or self.config.train_data is None else "train_data"
        prompts = self._source(field, getattr(self.config, field), split)
        if not prompts:
            ids = OFFICIAL[split]
            raise ValueError(
                f"task.{field}: {getattr(self.config, field)} has no {split} problems (task_id {ids[0]} to "
                f"{ids[-1]}); give another file"
            )
        if split == "test":
            return prompts
        later = ("test",) if split == "validation" else ("validation", "test")
        known = {self._key(prompt.fields) for name in later for prompt in self.load(name)}
        new = [prompt for prompt in prompts if self._key(prompt.fields) not in known]
        if not new:
            raise ValueError(
                f"task.{field}: {getattr(self.config, field)} has no {split} problem that is not in "
                f"{' or '.join(later)} too; give a task_id with each, or another file"
            )
        return new

    def _program(self, source: str, fields: Mapping[str, Any]) -> Program:
        tests = fields.get("test_list")
        if not isinstance(tests, list | tuple) or not tests or not all(isinstance(t, str) for t in tests):
            raise ValueError(f"test_list: {tests!r:.60}; give a list of asserts")
        imports = fields.get("test_imports") or []
        setup = [imports] if isinstance(imports, str) else list(imports)
        return Program(source, tuple(tests), "\n".join([*setup, fields.get("test_setup_code") or ""]))

    def _parse(self, row: Row, split: str) -> Problem | None:
        number = _number(row.get("task_id"))
        if number is not None and number < 975 and number not in OFFICIAL[split]:
            return None
        question = row.get("prompt", row.get("text"))
        if not isinstance(question, str) or not question.strip():
            raise ValueError("prompt: missing; give the problem as prompt (or text)")
        fields = {
            "prompt": question,
            "test_list": row.get("test_list"),
            "test_imports": row.get("test_imports") or [],
            "test_setup_code": row.get("test_setup_code") or "",
        }
        self._program("", fields)
        return fields, row.get("code")

    def _key(self, fields: Mapping[str, Any]) -> str:
        return fields["prompt"]

    def _question(self, fields: Mapping[str, Any]) -> str:
        words = {"prompt": fields["prompt"].strip(), "tests": "\n".join(fields["test_list"])}
        if self.config.prompt == "compact":
            return f"{words['prompt']}\n{fields['test_list'][0]}"
        if self.config.prompt == "paper":
            return PUBLISHED.replace("{prompt}", words["prompt"]).replace("{tests}", words["tests"])
        question = QUESTION.replace("{prompt}", words["prompt"]).replace("{tests}", words["tests"])
        return code.INSTRUCTION.replace("{question}", question)


def _number(task_id: object) -> int | None:
    """The number of a problem, which a file may have as a text (``602``, ``Mbpp/602``)."""
    digits = re.search("[0-9]+", str(task_id))
    return int(digits[0]) if digits and task_id is not None else None
