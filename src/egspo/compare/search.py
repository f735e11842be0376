"""The same small search for every method: successive halving on validation problems (arXiv 1502.07943).

All candidates run for the first rung's share of each budget, the best third of each method's for the next,
and so on; a candidate that goes on continues its run. What is best in so many samples need not be in so many
seconds, so each budget ranks and chooses for itself; candidates that both keep run once. A score is the mean
accuracy where nine tenths of the share were spent, and all of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egspo.compare.jobs import DIVERGED, Jobs
from egspo.compare.plan import Plan, Run, Values, marks_of
from egspo.compare.worker import CURVE, read_curve

Left = dict[tuple[str, str], list["Trial"]]
"""Candidates still in the race, by method and kind of budget."""


@dataclass
class Trial:
    """A candidate of a method, and how it did."""

    label: str
    number: int
    settings: Values
    rungs: list[dict[str, Any]] = field(default_factory=list)
    """Of each rung that it ran to: ``share``; ``samples, seconds`` spent; ``accuracy`` by kind of budget, of
    those for which it was still in the race, None if it diverged before."""
    chosen: list[str] = field(default_factory=list)
    """Kinds of budget for which it was the best."""

    @property
    def name(self) -> str:
        return f"{self.label}-{self.number}"

    def score(self, rung: int, kind: str) -> float:
        """Accuracy at a rung; below any if it diverged."""
        accuracy = self.rungs[rung]["accuracy"][kind]
        return -1.0 if accuracy is None else accuracy


def search(
    plan: Plan,
    labels: Sequence[str],
    work: Path,
    jobs: Jobs,
    done: Callable[[Run], None],
) -> list[Trial]:
    """All trials of the given methods, with what was chosen; finished parts of them are not run again."""
    trials = {
        label: [Trial(label, i, settings) for i, settings in enumerate(plan.candidates(label))]
        for label in labels
    }
    left: Left = {(label, kind): rows for label, rows in trials.items() for kind in plan.limits}
    for number, share in enumerate(plan.config.rungs):
        if all(len(rows) == 1 for rows in left.values()):
            break
        _run_rung(plan, share, left, work, jobs, done)
        left = {of: _best(rows, number, of[1], plan.config.keep) for of, rows in left.items()}
    for (_, kind), rows in left.items():
        rows[0].chosen.append(kind)
    return [trial for rows in trials.values() for trial in rows]


def num_trials(plan: Plan, label: str) -> int:
    """Runs that the search of a method makes at most, each rung counted."""
    kept = len(plan.candidates(label))
    count, total = kept, 0
    for _ in plan.config.rungs:
        if kept > 1:
            kept, total = _kept(kept, plan.config.keep), total + count
            count = min(count, kept * len(plan.limits))
    return total


def _best(rows: Sequence[Trial], rung: int, kind: str, keep: float) -> list[Trial]:
    """The best candidates first; of equals the earlier."""
    ranked = sorted(rows, key=lambda trial: -trial.score(rung, kind))
    return ranked[: _kept(len(rows), keep)]


def _kept(count: int, keep: float) -> int:
    return max(1, math.floor(count * keep + 1e-9))


def _run_rung(plan: Plan, share: float, left: Left, work: Path, jobs: Jobs, done) -> None:
    trials = {trial.name: trial for rows in left.values() for trial in rows}
    runs = {}
    for name, trial in trials.items():
        kinds = [kind for (_, kind), rows in left.items() if trial in rows]
        runs[name] = plan.trial(trial.label, trial.settings, share, work / name, kinds)
    missing = [run for run in runs.values() if not finished(run)]
    jobs.run(missing, done)
    for name, trial in trials.items():
        trial.rungs.append(_result(runs[name], share))


def finished(run: Run) -> bool:
    """Whether a run's folder holds a curve up to its budgets, or as far as it goes."""
    folder = Path(run.settings["output_dir"])
    points = read_curve(folder / CURVE)
    if (folder / DIVERGED).is_file():
        return True
    return bool(points) and all(points[-1][kind] >= limit for kind, limit in run.limits.items())


def _result(run: Run, share: float) -> dict[str, Any]:
    folder = Path(run.settings["output_dir"])
    points = read_curve(folder / CURVE)
    reached = (p for p in points if all(p[kind] >= limit for kind, limit in run.limits.items()))
    end = next(reached, points[-1])
    accuracy = {kind: _accuracy(points, kind, limit) for kind, limit in run.limits.items()}
    return {"share": share, "samples": end["samples"], "seconds": end["seconds"], "accuracy": accuracy}


def _accuracy(points: Sequence[dict[str, Any]], kind: str, limit: int | float) -> float | None:
    """Mean over the marks of a limit; None if the run ended before."""
    at = [next((p["accuracy"] for p in points if p[kind] >= mark), None) for mark in marks_of(limit)]
    return None if None in at else sum(at) / len(at)
