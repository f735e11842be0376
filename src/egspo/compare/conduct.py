"""Conducts a comparison: searches, runs, and writes what is known after every run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan, Run
from egspo.compare.results import Results
from egspo.compare.search import finished, num_trials, search
from egspo.compare.summary import summarise, table


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

    An interrupted comparison goes on, and a later one with further methods or seeds adds to it.

    Raises:
        ValueError: if the folder holds a comparison with other settings.
        RunFailed: if a run fails.
    """
    results, jobs = Results(folder), Jobs(at_once)
    results.open(plan)
    count = 0

    def done(run: Run) -> None:
        nonlocal count
        count += 1
        progress(count, run.label)

    unsearched = [label for label in plan.methods if results.chosen(label) is None]
    results.add_trials(search(plan, unsearched, results.work / "search", jobs, done))
    runs = {}
    for seed in seeds:
        for label in plan.methods:
            if not results.has(label, seed):
                chosen, place = results.chosen(label) or {}, results.work / "runs" / f"{label}-{seed}"
                runs[label, seed] = plan.final(label, chosen, seed, place)

    def keep(run: Run) -> None:
        results.keep(run, run.settings["seed"])
        _write(results, against, command)
        done(run)

    over = [run for run in runs.values() if finished(run)]
    for run in over:
        keep(run)
    jobs.run([run for run in runs.values() if run not in over], keep)
    return _write(results, against, command)


def num_runs(plan: Plan, seeds: Sequence[int], folder: Path) -> int:
    """Processes that are still to be started, at most.

    Raises:
        ValueError: if the folder holds a comparison with other settings.
    """
    results = Results(folder)
    results.check(plan)
    searches = [num_trials(plan, label) for label in plan.methods if results.chosen(label) is None]
    return sum(searches) + sum(not results.has(label, seed) for label in plan.methods for seed in seeds)


def _write(results: Results, against: str, command: str) -> str:
    comparison = summarise(results, against, command)
    text = table(comparison, results.folder.name)
    results.write(comparison, text)
    return text
