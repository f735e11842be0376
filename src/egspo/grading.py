"""Grade saved generations: no model needed."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from egspo.ops.intervals import wilson
from egspo.tasks.base import Task
from egspo.types import Grade

BATCH = 512
"""Lines graded at once: some graders work on several at a time."""


def grade_file(task: Task, path: Path, grader: str = "default") -> Iterator[dict[str, Any]]:
    """One verdict a line: ``index, correct, reward, extracted, reason`` (and ``counts``, and ``broken``).

    A broken line is graded wrong with its number in ``reason``, and the rest goes on; an empty one is none.

    Raises:
        ValueError: if the task has no such grader, or the file no line.
    """
    if grader == "paper" and type(task).paper_grade is Task.paper_grade:
        task.paper_grade("", {})  # raises, and says why
    weights = task.reward_weights
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = ((index, line) for index, line in enumerate(file) if line.strip())
        first = next(lines, None)
        if first is None:
            raise ValueError(f"INPUT: {path} has no line; give one JSON object a line, with a generation")
        lines = itertools.chain([first], lines)
        while batch := list(itertools.islice(lines, BATCH)):
            for (index, _), grade in zip(batch, _grade_lines(task, batch, grader), strict=True):
                if isinstance(grade, ValueError):
                    broken = Grade(False, {}, None, f"line {index + 1}: {grade}")
                    yield _verdict(index, broken, 0.0) | {"broken": True}
                else:
                    reward = sum((weights[name] * value for name, value in grade.parts.items()), 0.0)
                    yield _verdict(index, grade, reward)


def _grade_lines(task: Task, lines: list[tuple[int, str]], grader: str) -> list[Grade | ValueError]:
    """A grade for each line, or what is wrong with the line."""
    rows: list[tuple[str, dict[str, Any]] | ValueError] = []
    for _, line in lines:
        try:
            rows.append(_parse(line, task))
        except ValueError as error:
            rows.append(error)
    whole = [row for row in rows if not isinstance(row, ValueError)]
    if grader == "default":
        try:
            grades = iter(task.grade_all([text for text, _ in whole], [fields for _, fields in whole]))
            return [row if isinstance(row, ValueError) else next(grades) for row in rows]
        except ValueError:
            pass  # of some line: found below, one by one
    judge = task.paper_grade if grader == "paper" else task.grade
    return [row if isinstance(row, ValueError) else _grade_line(judge, *row) for row in rows]


def _grade_line(
    judge: Callable[[str, dict[str, Any]], Grade], text: str, fields: dict[str, Any]
) -> Grade | ValueError:
    try:
        return judge(text, fields)
    except ValueError as error:
        return error


def accuracy(verdicts: Sequence[dict[str, Any]], count: str | None) -> str:
    """What a file of verdicts comes to: the share of right answers, or of what ``count`` counts."""
    if count is not None:
        pairs = [verdict["counts"].get(count, (0, 0)) for verdict in verdicts]
        right, of = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        return f"accuracy {right / max(1, of):.4f} ({right}/{of} {count})"
    right, n = sum(verdict["correct"] for verdict in verdicts), len(verdicts)
    low, high = wilson(right, n)
    return f"accuracy {right / max(1, n):.4f} ({right}/{n}, 95% {low:.3f}-{high:.3f})"


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
