"""The run folder, progress on the screen, and mirrors of the metrics."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from egspo.config import BaseRun

# What may differ between a run and its resumption.
_FREE = ("output_dir", "resume", "tracking")


class RunFolder:
    """Files of a run. Only the main process of a run writes."""

    def __init__(self, path: Path, main: bool = True):
        self.path = path
        self.main = main

    def open(self, config: BaseRun) -> None:
        """Create the folder, or check that it belongs to the same configuration.

        Raises:
            ValueError: if it holds another configuration, or a finished part of this one with ``resume`` off.
            OSError: if it cannot be written.
        """
        values = json.loads(config.model_dump_json())
        file = self.path / "config.json"
        if file.is_file():
            self._check_same(json.loads(file.read_text(encoding="utf-8")), values)
            if not config.resume:
                raise ValueError(
                    f"output_dir: {self.path} holds a run already and resume is False; "
                    "choose another folder, or drop resume=false to go on with it"
                )
        if self.main:
            self.path.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changed = [key for key in _differences(old, new) if key.split(".")[0] not in _FREE]
        if changed:
            raise ValueError(
                f"output_dir: {self.path} holds a run of another configuration "
                f"(differs in {', '.join(changed[:5])}); choose another folder or the same settings"
            )

    def rewind(self, step: int) -> None:
        """Drop lines of iterations after ``step``: what was logged after the checkpoint happens again."""
        if not self.main:
            return
        for name in ("metrics.jsonl", "transcripts.jsonl"):
            file = self.path / name
            if file.is_file():
                kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

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


def write_evaluation(file: Path, summary: dict[str, Any], items: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def read_time(path: Path) -> float:
    """Seconds that a run had already taken, by the last line of its metrics."""
    file = path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return float(json.loads(lines[-1])["time"]) if lines else 0.0


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


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix.rstrip(".")]
    keys = sorted(set(old) | set(new))
    return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{prefix}{key}.")]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
