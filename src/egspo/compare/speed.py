"""How fast a machine is beside the one on which the folder of a comparison was begun.

Budgets in seconds mean nothing across machines, and a folder grows on several. So before runs are added, the
first iterations of a run that is kept are made again, as many at a time as there will be runs; seconds of
this machine are divided by how much longer they took.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from egspo.compare import RunFailed
from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan, Run
from egspo.compare.results import Results
from egspo.compare.worker import read_curve


def slowdown(plan: Plan, results: Results, against: str, jobs: Jobs) -> float | None:
    """Seconds here for one of the folder's seconds; None if it has no run yet.

    Raises:
        RunFailed: if the run that is made again fails.
    """
    labels = [against, *(label for label in results.labels if label != against)]
    kept = next((run for label in labels if (run := _kept(plan, results, label))), None)
    if kept is None:
        return None
    run, seconds = kept
    places = [Path(run.settings["output_dir"]) / str(i) for i in range(jobs.at_once)]
    try:
        jobs.run([replace(run, settings=run.settings | {"output_dir": str(p)}) for p in places], _nothing)
        ends = [read_curve(place / "curve.jsonl")[-1] for place in places]
    finally:
        shutil.rmtree(run.settings["output_dir"], ignore_errors=True)
    if any(end["samples"] < run.limits["samples"] for end in ends):
        raise RunFailed(
            f"{run.label}: a run of it that is kept in {results.folder} diverges here at its beginning"
        )
    return sum(end["seconds"] for end in ends) / len(ends) / seconds


def _kept(plan: Plan, results: Results, label: str) -> tuple[Run, float] | None:
    """The first interval between evaluations of a kept run of a method, and its seconds there."""
    for trial in results.chosen(label):
        for seed, points in results.curves(trial).items():
            if len(points) > 1 and points[1]["seconds"] > 0:
                place, made = results.work / "speed", plan.of(label, results.settings(label))
                run = made.final(label, trial.settings, seed, place, ["samples"])
                return replace(run, limits={"samples": points[1]["samples"]}, marks={}), points[1]["seconds"]
    return None


def _nothing(run: Run) -> None:
    pass
