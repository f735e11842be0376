"""Conducts a comparison: searches, runs, and writes what is known after every run."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan, Run
from egspo.compare.results import Results, alone
from egspo.compare.search import Trial, finished, num_trials, search
from egspo.compare.speed import slowdown
from egspo.compare.summary import summarise, table

TABLE_SECONDS = 60.0
"""Between two tables: the intervals of one take a while, and runs want the cores."""


def compare(
    plan: Plan,
    seeds: Sequence[int],
    folder: Path,
    at_once: int,
    against: str,
    command: str,
    progress: Callable[[int, str], None] = lambda done, note: None,
) -> str:
    """Make every search and run that ``folder`` lacks; returns the table.

    An interrupted comparison goes on, and a later one with further methods or seeds adds to it; budgets in
    seconds are those of the machine that began it.

    Raises:
        ValueError: if the folder holds a comparison with other settings, or another command is at work in it.
        RunFailed: if a run fails.
    """
    with alone(folder):
        return _compare(plan, seeds, folder, at_once, against, command, progress)


def _compare(
    plan: Plan,
    seeds: Sequence[int],
    folder: Path,
    at_once: int,
    against: str,
    command: str,
    progress: Callable[[int, str], None],
) -> str:
    results, total = Results(folder), num_runs(plan, seeds, folder)
    results.open(plan)
    jobs, measured = Jobs(max(1, min(at_once, total))), None
    if plan.config.seconds and total:
        progress(0, "the speed of this machine")
        measured = slowdown(plan, results, against, jobs)
        jobs.slowdown = measured or 1.0
    commands, seen = results.commands(command, measured), plan.seen
    count = 0

    def done(run: Run) -> None:
        nonlocal count
        count += 1
        progress(count, run.label)

    unsearched = [label for label in plan.methods if not results.chosen(label)]
    results.add_trials(search(plan, unsearched, results.work / "search", jobs, done))
    missing = []
    for trial, seed in _missing(results, plan, seeds):
        place = results.work / "runs" / f"{trial.name}-{seed}"
        missing.append((plan.final(trial.label, trial.settings, seed, place, trial.chosen), trial))
    trials = {run.settings["output_dir"]: trial for run, trial in missing}

    written = 0.0

    def keep(run: Run) -> None:
        nonlocal written
        results.keep(run, trials[run.settings["output_dir"]], run.settings["seed"])
        if time.monotonic() > written + TABLE_SECONDS:
            _write(results, against, commands, seen)
            written = time.monotonic()
        done(run)

    runs = [run for run, _ in missing]
    over = [run for run in runs if finished(run)]
    for run in over:
        keep(run)
    jobs.run([run for run in runs if run not in over], keep)
    return _write(results, against, commands, seen)


def num_runs(plan: Plan, seeds: Sequence[int], folder: Path) -> int:
    """Processes that are still to be started, at most.

    Raises:
        ValueError: if the folder holds a comparison with other settings.
    """
    results = Results(folder)
    results.check(plan)
    unsearched = [label for label in plan.methods if not results.chosen(label)]
    searches = sum(num_trials(plan, label) for label in unsearched)
    chosen = sum(min(len(plan.candidates(label)), len(plan.limits)) for label in unsearched)
    return searches + chosen * len(seeds) + len(_missing(results, plan, seeds))


def _missing(results: Results, plan: Plan, seeds: Sequence[int]) -> list[tuple[Trial, int]]:
    """Chosen candidates and seeds of which there is no curve."""
    chosen = [trial for label in plan.methods for trial in results.chosen(label)]
    return [(trial, seed) for seed in seeds for trial in chosen if not results.has(trial, seed)]


def _write(results: Results, against: str, commands: Sequence[str], seen: str) -> str:
    comparison = summarise(results, against, commands, seen)
    text = table(comparison, results.folder.name)
    results.write(comparison, text)
    return text
