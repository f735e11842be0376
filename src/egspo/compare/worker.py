"""One run of a comparison, in a process of its own: ``python -m egspo.compare.worker FOLDER PARENT``.

It ends with the process PARENT, that of the comparison. The folder holds ``run.json``; the curve comes into
``curve.jsonl`` beside it, a line an evaluation. A run that was interrupted goes on from its checkpoint, and
one that spent its budget if the budget has grown.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.compare.jobs import DIVERGED
from egspo.compare.plan import Run
from egspo.config import RLRun, parse_config, parse_section
from egspo.evaluation import evaluate
from egspo.policy import build_policy
from egspo.tracking import write_whole
from egspo.trainer import Trainer

CURVE = "curve.jsonl"
"""The curve of a run, in its folder."""
CLOCKS = {time.process_time: "processor", time.monotonic: "wall"}
CUMULATIVE = ("step", "time", "samples", "tokens")


class Recorder:
    """A callback that evaluates the policy as it learns, and ends the run once its budgets are spent.

    ``seconds`` counts what training costs: processor time of this process on a CPU, wall-clock time where a
    GPU works beside it; evaluation is left out of it. They are made those of the comparison's first machine.
    """

    def __init__(self, run: Run, config: RLRun, folder: Path):
        self.run, self.config = run, config
        self.sampler = config.eval.sampler(parse_section(RLRun, "sampler", run.decoding))
        self.file = folder / CURVE
        self.points = read_curve(self.file)
        self.sums: dict[str, list[float]] = defaultdict(list)
        self.spent, self.started = {"samples": 0, "seconds": 0.0}, False

    def begin(self, trainer: Trainer) -> None:
        """Evaluate the base, unless that was done before."""
        self.clock = time.process_time if trainer.policy.device.type == "cpu" else time.monotonic
        if not self.points:
            self._evaluate(trainer, {"step": 0, "samples": 0})
        self.last = self.clock()

    def __call__(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if not self.started:
            self._rewind(row["step"])
        before, seconds = self.spent, (self.clock() - self.last) / self.run.slowdown
        self.spent = {"samples": row["samples"], "seconds": before["seconds"] + seconds}
        for key, value in row.items():
            if key not in CUMULATIVE and value is not None:
                self.sums[key].append(value)
        marks = ((kind, mark) for kind, marks in self.run.marks.items() for mark in marks)
        crossed = any(before[kind] < mark <= self.spent[kind] for kind, mark in marks)
        trainer.should_stop = all(self.spent[kind] >= limit for kind, limit in self.run.limits.items())
        if row["step"] % self.run.eval_steps == 0 or crossed or trainer.should_stop:
            self._evaluate(trainer, row)
        self.last = self.clock()

    def _rewind(self, step: int) -> None:
        """The first iteration of this process is ``step``: what was recorded from there on happens again."""
        self.points = [point for point in self.points if point["step"] < step]
        self.spent, self.started = {kind: self.points[-1][kind] for kind in self.spent}, True

    def _evaluate(self, trainer: Trainer, row: dict[str, Any]) -> None:
        prompts = trainer.task.load(self.run.split)[: self.config.eval.limit]
        size, split = self.config.eval.batch_size, self.run.split
        summary, items = evaluate(trainer.policy, trainer.task, prompts, self.sampler, size, split=split)
        point = {
            "step": row["step"],
            "samples": row["samples"],
            "seconds": self.spent["seconds"],
            "clock": CLOCKS[self.clock],
            "accuracy": summary["accuracy"],
            "n": summary["n"],
            "correct": pack([item["correct"] for item in items]),
            "metrics": {key: sum(values) / len(values) for key, values in self.sums.items()},
        }
        self.sums.clear()
        self.points.append(point)
        write_whole(self.file, "".join(json.dumps(point) + "\n" for point in self.points))


def pack(correct: list[bool]) -> str:
    """Verdicts as a hexadecimal number, the first problem's in its highest bit."""
    return f"{int('1' + ''.join(str(int(right)) for right in correct), 2):x}"


def unpack(text: str) -> list[bool]:
    """The inverse of ``pack``."""
    return [digit == "1" for digit in f"{int(text, 16):b}"[1:]]


def read_curve(file: Path) -> list[dict[str, Any]]:
    """Points of a curve in the order of steps; none if there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def train(folder: Path) -> None:
    """Train until the budget of ``run.json`` is spent.

    Raises:
        FloatingPointError: if the run diverges; its curve ends there.
    """
    (folder / DIVERGED).unlink(missing_ok=True)
    run = Run(**json.loads((folder / "run.json").read_text(encoding="utf-8")))
    config = parse_config(RLRun, run.settings)
    task = registry.make_task(config.task)
    task.prepare(config.sandbox)
    policy = build_policy(config.model, config.seed, task.max_number_token)
    recorder = Recorder(run, config, folder)
    trainer = Trainer(policy, task, config, callbacks=[recorder])
    recorder.begin(trainer)
    trainer.train()


def _end_with(parent: int) -> None:
    """A run that outlived its comparison would be in the way of the one that goes on."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with(int(sys.argv[2]))
    try:
        train(Path(sys.argv[1]))
    except FloatingPointError as error:
        traceback.print_exc()
        (Path(sys.argv[1]) / DIVERGED).write_text(f"{error}\n", encoding="utf-8")
