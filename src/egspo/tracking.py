"""The run folder, progress on the screen, and mirrors of the metrics."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from egspo import launch
from egspo.config import BaseRun, TrackingConfig, brought_up

# What may differ between a run and its resumption.
_FREE = ("output_dir", "resume", "tracking", "train.check_memory", "sft.check_memory")


class RunFolder:
    """Files of a run. Only the main process of a run writes."""

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self._accelerator = accelerator
        self.main = accelerator.is_main_process

    def open(self, config: BaseRun) -> None:
        """Create the folder, or check that it belongs to the same configuration.

        Raises:
            ValueError: if it holds another configuration, or a finished part of this one with ``resume`` off.
            OSError: if it cannot be written.
        """
        values = json.loads(config.model_dump_json())
        file = self.path / "config.json"
        if file.is_file():
            self._check_same(brought_up(type(config), _read_config(file)), values)
            if not config.resume:
                raise ValueError(
                    f"output_dir: {self.path} holds a run already and resume is False; "
                    "choose another folder, or drop resume=false to go on with it"
                )
        # No rank may look once the main one has begun to write.
        self._accelerator.wait_for_everyone()
        if self.main:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(values, indent=2) + "\n")

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changed = [key for key in differences(old, new) if not {key, key.split(".")[0]} & {*_FREE}]
        if changed:
            raise ValueError(
                f"output_dir: {self.path} holds a run of another configuration "
                f"(differs in {', '.join(changed[:5])}); choose another folder or the same settings"
            )

    def rewind(self, step: int) -> float:
        """Drop what was logged after ``step``, for it happens again; returns the seconds up to there."""
        kept = {name: self._rewind(self.path / name, step) for name in ("transcripts.jsonl", "metrics.jsonl")}
        last = kept["metrics.jsonl"][-1:]
        return float(json.loads(last[0]).get("time") or 0.0) if last else 0.0

    def _rewind(self, file: Path, step: int) -> list[str]:
        if not self.main or not file.is_file():
            return []
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if _step_of(line) <= step]
        write_whole(file, "".join(line + "\n" for line in kept))
        return kept

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        if self.main and rows:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def write_evaluation(self, name: str, summary: dict[str, Any], items: list[dict[str, Any]]) -> Path:
        """``eval/NAME.json`` and, one line a problem, ``eval/NAME.jsonl``."""
        file = self.path / "eval" / f"{name}.json"
        if self.main:
            write_evaluation(file, {"name": name, **summary}, items)
        return file


class Mirror:
    """The trackers that a run reports to beside its own files; none unless asked for."""

    def __init__(self, accelerator: Accelerator, tracking: TrackingConfig):
        self._accelerator = accelerator
        self._tracking = tracking

    def start(self, config: BaseRun) -> None:
        name, settings = self._tracking.run_name, _flat(json.loads(config.model_dump_json()))
        if self._tracking.report_to:
            named = {} if name is None else {"wandb": {"name": name}, "trackio": {"name": name}}
            self._accelerator.init_trackers(self._tracking.project, settings, named)

    def log(self, row: dict[str, Any]) -> None:
        if self._tracking.report_to:
            self._accelerator.log(
                {key: value for key, value in row.items() if value is not None}, step=row["step"]
            )

    def end(self) -> None:
        if self._tracking.report_to:
            self._accelerator.end_training()


def start_accelerator(config: BaseRun) -> Accelerator:
    """The processes and devices of this launch, and the trackers that the configuration asks for."""
    folder = config.output_dir / "trackers"
    if config.tracking.run_name is not None:
        folder /= config.tracking.run_name
    return launch.accelerator(log_with=config.tracking.report_to or None, project_dir=str(folder))


def write_evaluation(file: Path, summary: dict[str, Any], items: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in items), encoding="utf-8"
    )


class Screen:
    """Progress bar and messages; silent on all ranks but the main one."""

    def __init__(self, title: str, total: int, main: bool = True):
        self.console = Console(stderr=True, quiet=not main)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # Without a terminal a bar would fill a log with control characters: a line now and then instead.
        self.live = sys.stderr.isatty()
        self.progress = Progress(*columns, console=self.console, disable=not main or not self.live)
        self.title, self.total = title, total
        self._bar = self.progress.add_task(title, total=total, note="")
        self._last = time.monotonic()

    def __enter__(self) -> "Screen":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def advance(self, done: int, note: str) -> None:
        self.progress.update(self._bar, completed=done, note=note)
        if not self.live and (time.monotonic() - self._last > 15 or done == self.total):
            self._last = time.monotonic()
            self.say(f"{self.title} {done}/{self.total}  {note}")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)


def peak_memory_gb() -> float:
    """Peak memory of this process in GiB: of the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as trackers take them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str) else str(value)
    return flat


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two nested mappings."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix.rstrip(".")]
    keys = sorted(set(old) | set(new))
    return [d for key in keys for d in differences(old.get(key), new.get(key), f"{prefix}{key}.")]


def _step_of(line: str) -> int | float:
    """The iteration that a line tells of; infinity for one that an interruption cut, or that is not ours."""
    try:
        row = json.loads(line)
    except ValueError:
        return math.inf
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else math.inf


def _read_config(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"output_dir: {file} is not JSON ({error}); restore it or choose another folder"
        ) from None
    return values if isinstance(values, dict) else {}


def write_whole(file: Path, text: str) -> None:
    """Replace a file in one go: whoever interrupts leaves the old one or the new one."""
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
