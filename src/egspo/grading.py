"""Grade saved generations: no model needed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egspo.tasks.base import Task
from egspo.types import Grade


def grade_file(task: Task, path: Path, grader: str = "default") -> Iterator[dict[str, Any]]:
    """One verdict a line: ``index, correct, reward, extracted, reason`` (and ``counts``).

    A broken line is graded wrong with its number in ``reason``, and the rest goes on.

    Raises:
        ValueError: if the task has no such grader.
    """
    judge = task.paper_grade if grader == "paper" else task.grade
    weights = task.reward_weights
    for index, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            generation, fields = _parse(line, task)
        except ValueError as error:
            yield _verdict(index, Grade(False, {}, None, f"line {index + 1}: {error}"), 0.0)
            continue
        try:
            grade = judge(generation, fields)
        except ValueError as error:
            yield _verdict(index, Grade(False, {}, None, f"line {index + 1}: {error}"), 0.0)
            continue
        yield _verdict(index, grade, sum(weights[name] * value for name, value in grade.parts.items()))


def _parse(line: str, task: Task) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    missing = [name for name in ("generation", *task.grade_fields) if name not in row]
    if missing:
        raise ValueError(f"no field {', '.join(missing)}")
    if not isinstance(row["generation"], str):
        raise ValueError("generation is not a text")
    return row["generation"], row


def _verdict(index: int, grade: Grade, reward: float) -> dict[str, Any]:
    return {
        "index": index,
        "correct": grade.correct,
        "reward": reward,
        "extracted": grade.extracted,
        "reason": grade.reason,
        "counts": {name: list(pair) for name, pair in grade.counts.items()},
    }
