"""Reads run folders: what a run left on disk, checked just enough to be drawn."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of one run: metrics in the order of steps, evaluations with their file name as ``file``."""

    name: str
    config: Row
    metrics: tuple[Row, ...]
    transcripts: tuple[Row, ...]
    evaluations: tuple[Row, ...]

    def series(self, key: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Where along ``axis`` a metric was recorded, and its values; both empty if it never was."""
        points = [(number(row.get(axis)), number(row.get(key))) for row in self.metrics]
        points = np.array([point for point in points if None not in point], dtype=float).reshape(-1, 2)
        return points[:, 0], points[:, 1]

    def last(self, key: str) -> float | int | None:
        """The last recorded value of a metric."""
        values = [number(row.get(key)) for row in self.metrics]
        return next((value for value in reversed(values) if value is not None), None)

    def metric_keys(self, area: str) -> list[str]:
        """Metrics of an area that were recorded at least once, in the order of the file."""
        keys = dict.fromkeys(key for row in self.metrics for key in row if key.startswith(f"{area}/"))
        return [key for key in keys if self.last(key) is not None]

    @property
    def validations(self) -> list[Row]:
        """Evaluations on the validation split during training, in the order of steps."""
        return sorted((e for e in self.evaluations if is_validation(e)), key=lambda e: e["step"])

    @property
    def kind(self) -> dict[str, str | None]:
        """Objective, task and model, in words."""
        sft = self.last("loss/sft") is not None
        return {
            "Objective": "supervised fine-tuning" if sft else _first(self.config, "objective", "name"),
            "Task": _first(self.config, "task", "name", "path"),
            "Model": _first(self.config, "model", "model_name_or_path", "init"),
        }


def number(value: Any) -> float | int | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def is_validation(evaluation: Row) -> bool:
    """Whether an evaluation is a point of the validation curve."""
    return evaluation.get("split") == "validation" and number(evaluation.get("step")) is not None


def interval(evaluation: Row) -> tuple[float, float] | None:
    """The 95 % interval of an evaluation's accuracy, if it is recorded."""
    ends = evaluation.get("ci95")
    if not isinstance(ends, list) or [number(end) for end in ends].count(None) or len(ends) != 2:
        return None
    return ends[0], ends[1]


def before_after(run: Run) -> tuple[Row | None, Row | None]:
    """The evaluations called ``…before`` and ``…after``: preferably both, and those called ``test…``."""
    found = {}
    for evaluation in sorted(run.evaluations, key=lambda e: (e.get("split") != "test", e["file"])):
        for place, word in enumerate(("before", "after")):
            if word in evaluation["file"]:
                found.setdefault(evaluation["file"].replace(word, ""), [None, None])[place] = evaluation
    pairs = sorted(found.items(), key=lambda item: (None in item[1], not item[0].startswith("test")))
    return tuple(pairs[0][1]) if pairs else (None, None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, each under a name of its own.

    Raises:
        ValueError: with the path, what is wrong with it, and the remedy.
    """
    if not folders:
        raise ValueError("report: no run folder given; name at least one")
    return [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as much of the path as tells the folders apart."""
    whole = [folder.resolve() for folder in folders]
    short, counts = [path.name for path in whole], Counter(path.name for path in whole)
    names = [f"{p.parent.name}/{p.name}" if counts[p.name] > 1 else p.name for p in whole]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(short, start=1)]
    return [name.encode(errors="replace").decode() for name in names]


def _read_run(folder: Path, name: str) -> Run:
    remedy = "give the folder that `egspo train` or `egspo sft` wrote (its output_dir)"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; {remedy}")
    for file in ("config.json", "metrics.jsonl"):
        if not (folder / file).is_file():
            raise ValueError(f"{folder}: not a run folder, {file} is missing; {remedy}")
    metrics = {row["step"]: row for row in _read_lines(folder / "metrics.jsonl")}
    if not metrics:
        path = folder / "metrics.jsonl"
        raise ValueError(f"{path}: no training iteration is recorded; let the run finish at least one")
    transcripts = folder / "transcripts.jsonl"
    evaluations = [
        read_object(path) | {"file": path.stem} for path in sorted((folder / "eval").glob("*.json"))
    ]
    return Run(
        name=name,
        config=read_object(folder / "config.json"),
        metrics=tuple(metrics[step] for step in sorted(metrics)),
        transcripts=tuple(_read_lines(transcripts)) if transcripts.is_file() else (),
        evaluations=tuple(row for row in evaluations if number(row.get("accuracy")) is not None),
    )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: naming the file, if it holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; restore the file or remove it")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, each with a ``step``; a last line that an interruption cut is dropped."""
    lines = [
        (place, line) for place, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()
    ]
    rows = []
    for place, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            if place == lines[-1][0]:
                break
            row = None
        if not isinstance(row, dict) or number(row.get("step")) is None:
            raise ValueError(
                f"{path}: line {place} is not a JSON object with a step; restore the line or remove it"
            )
        rows.append(row)
    return rows


def _first(config: Row, section: str, *keys: str) -> str | None:
    """The first of a section's keys that is set; a section may be a bare name."""
    part = config.get(section)
    if not isinstance(part, Mapping):
        return None if part is None else str(part)
    return next((str(part[key]) for key in keys if part.get(key) is not None), None)
