"""Grade saved generations: no model needed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egspo.tasks.base import Task
from egspo.types import Grade


def grade_file(task: Task, path: Path, grader: str = "default") -> Iterator[dict[str, Any]]:
    """One verdict a line: ``index, correct, reward, extracted, reason`` (and ``counts``, and ``broken``).

    A broken line is graded wrong with its number in ``reason``, and the rest goes on; an empty one is none.

    Raises:
        ValueError: if the task has no such grader.
    """
    if grader == "paper" and type(task).paper_grade is Task.paper_grade:
        task.paper_grade("", {})  # raises, and says why
    judge = task.paper_grade if grader == "paper" else task.grade
    weights = task.reward_weights
    with path.open(encoding="utf-8", errors="replace") as file:
        for index, line in enumerate(file):
            if not line.strip():
                continue
            try:
                grade = judge(*_parse(line, task))
            except ValueError as error:
                grade = Grade(False, {}, None, f"line {index + 1}: {error}")
                yield _verdict(index, grade, 0.0) | {"broken": True}
                continue
            reward = sum((weights[name] * value for name, value in grade.parts.items()), 0.0)
            yield _verdict(index, grade, reward)


def _parse(line: str, task: Task) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({getattr(error, 'msg', error)})") from None
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
        "broken": False,
    }
