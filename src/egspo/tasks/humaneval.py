"""HumanEval: complete a function from its signature and docstring (arXiv 2107.03374).

A completion may give the whole function or only its body: what defines no ``entry_point`` is read as the
continuation of the problem's prompt. Imports and helper functions of the prompt stand before the program.
There is no training split; train on ``code``.
"""

import ast
import symtable
from collections.abc import Mapping
from typing import Any, ClassVar

from egspo.hub import DatasetSplit
from egspo.records import Row
from egspo.sandbox import Program
from egspo.tasks import code
from egspo.tasks.base import Problem
from egspo.tasks.code import split_tests

QUESTION = "Complete this function.\n\n```python\n{prompt}\n```"
PUBLISHED = """\
You are a coding expert. You will be given a coding problem to solve. Solve it step by step.

Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
```python
Your code here
```
</answer>" 


{question}"""
"""Evaluation prompt of EGSPO's code (arXiv 2603.12554), stray quotation mark included."""


class Task(code.Task):
    """Complete a function from its docstring (HumanEval, arXiv 2107.03374); no training split."""

    name = "humaneval"
    description = "HumanEval: complete a function from its docstring; evaluation only"
    version = "2"
    source = "HumanEval, arXiv 2107.03374"
    grade_fields: ClassVar[tuple[str, ...]] = ("prompt", "test", "entry_point")
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {
        "test": (DatasetSplit("openai/openai_humaneval", "test"),)
    }

    def _program(self, source: str, fields: Mapping[str, Any]) -> Program:
        _require(fields, self.grade_fields)
        prompt, name = fields["prompt"], fields["entry_point"]
        if name not in _defined(source):
            source = f"{prompt.rstrip()}\n{_indented(source)}"
        setup, tests = split_tests(fields["test"], name)
        return Program(source, tests, setup, _before(prompt, name), (name,))

    def _parse(self, row: Row, split: str) -> Problem:
        _require(row, self.grade_fields)
        split_tests(row["test"], row["entry_point"])
        body = row.get("canonical_solution")
        return {field: row[field] for field in self.grade_fields}, body and row["prompt"] + body

    def _key(self, fields: Mapping[str, Any]) -> str:
        return fields["prompt"]

    def _question(self, fields: Mapping[str, Any]) -> str:
        prompt = fields["prompt"].strip()
        if self.config.prompt == "compact":
            return prompt
        if self.config.prompt == "paper":
            return PUBLISHED.replace("{question}", docstring(prompt, fields["entry_point"]))
        return code.INSTRUCTION.replace("{question}", QUESTION.format(prompt=prompt))


def _require(row: Mapping[str, Any], columns: tuple[str, ...]) -> None:
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column]:
            raise ValueError(f"{column}: missing; give HumanEval's columns {', '.join(columns)}")


def docstring(prompt: str, entry_point: str) -> str:
    """The words of a problem without its code, as the published prompt shows them."""
    for node in ast.parse(f"{prompt.rstrip()}\n    pass\n").body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            lines = (ast.get_docstring(node, clean=False) or "").splitlines()
            return "\n".join(line.strip() for line in lines).strip()
    return ""


def _before(prompt: str, entry_point: str) -> str:
    """Imports and helper functions that stand before the function to complete."""
    return prompt[: max(0, prompt.rfind(f"def {entry_point}("))]


def _defined(source: str) -> set[str]:
    """Names that a program binds at its top level; none if it is no program."""
    try:
        names = symtable.symtable(source, "program", "exec").get_symbols()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {name.get_name() for name in names if name.is_assigned() or name.is_imported()}


def _indented(source: str) -> str:
    """A function's body as continuation of its signature."""
    return "\n".join(f"    {line}" if line.strip() else line for line in source.splitlines())
