"""The same small search for every method: successive halving on validation problems (arXiv 1502.07943).

All candidates run for the first rung's share of the samples, the best third of each method's for the next,
and so on; a candidate that goes on continues its run. Its score at a rung is the mean accuracy of its last
two evaluations up to there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egspo.compare.jobs import DIVERGED, Jobs
from egspo.compare.plan import Plan, Run, Values
from egspo.compare.worker import read_curve

LAST = 2
"""Evaluations that a score is the mean of, for a single one is noisy."""


@dataclass
class Trial:
    """A candidate of a method, and how it did."""

    label: str
    number: int
    settings: Values
    rungs: list[dict[str, Any]] = field(default_factory=list)
    """``share, samples, seconds, accuracy`` of each rung that it ran to; accuracy is None if it diverged."""
    chosen: bool = False

    @property
    def name(self) -> str:
        return f"{self.label}-{self.number}"

    def score(self, rung: int) -> float:
        accuracy = self.rungs[rung]["accuracy"] if rung < len(self.rungs) else None
        return -1.0 if accuracy is None else accuracy


def search(
    plan: Plan,
    labels: Sequence[str],
    work: Path,
    jobs: Jobs,
    done: Callable[[Run], None],
) -> list[Trial]:
    """All trials of the given methods, one of each ``chosen``; finished parts of them are not run again."""
    trials = {
        label: [Trial(label, i, settings) for i, settings in enumerate(plan.candidates(label))]
        for label in labels
    }
    left = dict(trials)
    for number, share in enumerate(plan.config.rungs):
        if all(len(rows) == 1 for rows in left.values()):
            break
        _run_rung(plan, share, [trial for rows in left.values() for trial in rows], work, jobs, done)
        left = {label: _best(rows, number, plan.config.keep) for label, rows in left.items()}
    for rows in left.values():
        rows[0].chosen = True
    return [trial for rows in trials.values() for trial in rows]


def num_trials(plan: Plan, label: str) -> int:
    """Runs that the search of a method makes, each rung counted."""
    count, total = len(plan.candidates(label)), 0
    for _ in plan.config.rungs:
        if count > 1:
            total, count = total + count, _kept(count, plan.config.keep)
    return total


def _best(rows: Sequence[Trial], rung: int, keep: float) -> list[Trial]:
    """The best candidates first; of equals the earlier."""
    ranked = sorted(rows, key=lambda trial: -trial.score(rung))
    return ranked[: _kept(len(rows), keep)]


def _kept(count: int, keep: float) -> int:
    return max(1, math.floor(count * keep + 1e-9))


def _run_rung(plan, share: float, rows: Sequence[Trial], work: Path, jobs: Jobs, done) -> None:
    runs = {trial.name: plan.trial(trial.label, trial.settings, share, work / trial.name) for trial in rows}
    missing = [run for run in runs.values() if not finished(run)]
    jobs.run(missing, done)
    for trial in rows:
        trial.rungs.append(_result(runs[trial.name], share))


def finished(run: Run) -> bool:
    """Whether a run's folder holds a curve up to its budget, or as far as it goes."""
    folder = Path(run.settings["output_dir"])
    points = read_curve(folder / "curve.jsonl")
    if (folder / DIVERGED).is_file():
        return True
    if not points or points[-1]["samples"] < run.samples:
        return False
    return run.seconds is None or points[-1]["seconds"] >= run.seconds


def _result(run: Run, share: float) -> dict[str, Any]:
    folder = Path(run.settings["output_dir"])
    points = [p for p in read_curve(folder / "curve.jsonl") if 0 < p["samples"] <= run.samples]
    gone = (folder / DIVERGED).is_file()
    last = points[-LAST:]
    return {
        "share": share,
        "samples": run.samples,
        "seconds": points[-1]["seconds"] if points else None,
        "accuracy": None if gone or not last else sum(p["accuracy"] for p in last) / len(last),
    }
