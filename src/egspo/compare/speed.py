"""How fast a machine is beside the one on which the folder of a comparison was begun.

Budgets in seconds mean nothing across machines, and a folder grows on several. So before runs are added, the
first iterations of runs that are kept are made again, as many at a time as there will be runs; seconds of
this machine are divided by how much longer they took than the kept ones on the mean.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

from egspo.compare import RunFailed
from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan, Run
from egspo.compare.results import Results
from egspo.compare.worker import read_curve


def slowdown(plan: Plan, results: Results, against: str, jobs: Jobs) -> float | None:
    """Seconds here for one of the folder's seconds; None if it has no run yet.

    Raises:
        RunFailed: if a run that is made again fails.
    """
    place = results.work / "speed"
    labels = [against, *(label for label in results.labels if label != against)]
    found = next((kept for label in labels if (kept := _kept(plan, results, label, place))), None)
    if found is None:
        return None
    runs, seconds = found
    shutil.rmtree(place, ignore_errors=True)  # of a command that was killed
    again = [
        replace(run, settings=run.settings | {"output_dir": str(place / str(i))})
        for i, run in enumerate(itertools.islice(itertools.cycle(runs), jobs.at_once))
    ]
    try:
        jobs.run(again, lambda run: None)
        ends = [(run, read_curve(place / str(i) / "curve.jsonl")[-1]) for i, run in enumerate(again)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for run, end in ends:
        if end["samples"] < run.limits["samples"]:
            raise RunFailed(f"{run.label}: a run that {results.folder} holds diverges here at its beginning")
    return mean(end["seconds"] for _, end in ends) / seconds


def _kept(plan: Plan, results: Results, label: str, place: Path) -> tuple[list[Run], float] | None:
    """The kept runs of a method to their first evaluation, a seed each, and the mean seconds they took."""
    for trial in results.chosen(label):
        second = {seed: points[1] for seed, points in results.curves(trial).items() if len(points) > 1}
        if not second:
            continue
        samples = min(point["samples"] for point in second.values())
        seconds = {seed: point["seconds"] for seed, point in second.items() if point["samples"] == samples}
        made = plan.of(label, results.settings(label))
        runs = [made.final(label, trial.settings, seed, place, ["samples"]) for seed in seconds]
        return [replace(run, limits={"samples": samples}, marks={}) for run in runs], mean(seconds.values())
    return None
