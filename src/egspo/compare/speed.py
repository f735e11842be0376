"""How fast a machine is beside the one on which the folder of a comparison was begun.

Budgets in seconds mean nothing across machines, and a folder grows on several. So before runs are added, the
first iterations of runs that are kept, or of those that an ended command left in ``work/``, are made again,
as many at a time as there will be runs; seconds of this machine are divided by how much longer they took.
"""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

from egspo.compare import RunFailed
from egspo.compare.jobs import DIVERGED, Jobs
from egspo.compare.plan import Plan, Run
from egspo.compare.results import Results
from egspo.compare.worker import CURVE, read_curve


def slowdown(plan: Plan, results: Results, against: str, jobs: Jobs) -> float | None:
    """Seconds here for one of the folder's seconds; None if it has no run yet.

    Raises:
        RunFailed: if a run that is made again fails.
    """
    place = results.work / "speed"
    shutil.rmtree(place, ignore_errors=True)  # of a command that was killed
    labels = [against, *(label for label in results.labels if label != against)]
    found = next((kept for label in labels if (kept := _kept(plan, results, label, place))), None)
    found = found or _begun(results.work)
    if not found:
        return None
    again = [
        (replace(run, settings=run.settings | {"output_dir": str(place / str(i))}), seconds)
        for i, (run, seconds) in enumerate(itertools.islice(itertools.cycle(found), jobs.at_once))
    ]
    try:
        jobs.run([run for run, _ in again], lambda run: None)
        ends = [read_curve(place / str(i) / CURVE)[-1] for i in range(len(again))]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for (run, _), end in zip(again, ends, strict=True):
        if end["samples"] < run.limits["samples"]:
            raise RunFailed(f"{run.label}: a run that {results.folder} holds diverges here at its beginning")
    return mean(end["seconds"] for end in ends) / mean(seconds for _, seconds in again)


def _kept(plan: Plan, results: Results, label: str, place: Path) -> list[tuple[Run, float]]:
    """The kept runs of a method to their first evaluation, a seed each, with the mean seconds they took."""
    for trial in results.chosen(label):
        second = {seed: points[1] for seed, points in results.curves(trial).items() if len(points) > 1}
        if not second:
            continue
        samples = min(point["samples"] for point in second.values())
        seconds = {seed: point["seconds"] for seed, point in second.items() if point["samples"] == samples}
        made = plan.of(label, results.settings(label))
        runs = [made.final(label, trial.settings, seed, place, ["samples"]) for seed in seconds]
        return [(_to(run, samples), mean(seconds.values())) for run in runs]
    return []


def _begun(work: Path) -> list[tuple[Run, float]]:
    """The search's and other runs in ``work/`` to their first evaluation, with the seconds that each took."""
    found = []
    for file in sorted(work.glob("*/*/run.json")):
        points = read_curve(file.parent / CURVE)
        if len(points) > 1 and not (file.parent / DIVERGED).is_file():
            run = Run(**json.loads(file.read_text(encoding="utf-8")))
            found.append((_to(run, points[1]["samples"]), points[1]["seconds"]))
    return found


def _to(run: Run, samples: int) -> Run:
    return replace(run, limits={"samples": samples}, marks={})
