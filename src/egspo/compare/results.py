"""The folder of a comparison: small files that can be committed, and grow from one session to the next.

plan.json          what all runs have in common, and each method's own settings
search.json        every candidate that was tried, how it did, for which budgets it was chosen
curves/METHOD/candidate-0/seed-0.jsonl    one line an evaluation, with the verdict on each problem
comparison.json, README.md, report.html    made of the above
work/              run folders; not for committing, and not needed once a run is done
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from egspo.compare.jobs import DIVERGED
from egspo.compare.plan import Plan, Run
from egspo.compare.search import Trial
from egspo.compare.worker import CURVE, read_curve
from egspo.tracking import differences, write_whole

SLOWDOWN = "  # seconds / "
"""Between a command and what the seconds of its machines were divided by (`egspo.compare.speed`)."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder of results: each would undo what the other writes.

    Raises:
        ValueError: if one is at work in it.
    """
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with (folder / "work" / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = "is in use by another egspo compare; wait for it, or choose another folder"
            raise ValueError(f"--out: {folder} {told}") from None
        yield


class Results:
    """Reads and writes the folder of a comparison."""

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / "work"
        trials = self._read("search.json", [])
        if any(isinstance(row["chosen"], bool) for row in trials):
            raise ValueError(
                f"--out: the search in {folder} is of an earlier version and knew one budget; "
                "choose another folder"
            )
        self.trials = [Trial(**row) for row in trials]
        self.plan = self._with_results(self._read("plan.json", {}))
        self.trials = [trial for trial in self.trials if trial.label in self.labels]

    def check(self, plan: Plan) -> dict[str, Any]:
        """What ``plan.json`` holds once the plan's runs stand beside those that are there.

        Raises:
            ValueError: naming the settings by which they cannot.
        """
        shared, methods = plan.shared(), self.plan.get("methods", {})
        own = shared.pop("own")
        if self.plan:
            self._refuse(differences(self.plan["shared"], shared), "")
        for label, settings in plan.methods.items():
            entry = {"settings": settings, "own_grid": own.get(label, {}), "resolved": plan.resolved(label)}
            if label in methods:
                known = methods[label] | {"resolved": plan.resolved(label, methods[label]["resolved"])}
                self._refuse(differences(known, entry), f"{label}: ")
            methods = methods | {label: entry}
        own_grids = {label: entry["own_grid"] for label, entry in methods.items() if entry["own_grid"]}
        plan.beside({label: entry["settings"] for label, entry in methods.items()}, own_grids).check()
        return {"shared": shared, "methods": methods}

    def open(self, plan: Plan) -> None:
        """Create the folder, or add the plan to it.

        Raises:
            ValueError: as `check`.
        """
        self.plan = self.check(plan)
        self.work.mkdir(parents=True, exist_ok=True)
        for run in self.work.glob("*/*/"):
            if not (run / CURVE).is_file():  # it failed before it began, by settings that may be others now
                shutil.rmtree(run)
        (self.work / ".gitignore").write_text("*\n", encoding="utf-8")
        self._write("plan.json", self.plan)

    def _with_results(self, plan: dict[str, Any]) -> dict[str, Any]:
        """What holds of an earlier plan: methods of which there is no result may have been a mistake."""
        made = {trial.label for trial in self.trials if trial.rungs}
        made |= {place.name for place in self.folder.glob("curves/*/")}
        begun = [file.parent.name for file in self.work.glob(f"*/*/{CURVE}")]
        methods = {
            label: entry
            for label, entry in plan.get("methods", {}).items()
            if label in made or any(name.startswith(f"{label}-") for name in begun)
        }
        return plan | {"methods": methods} if methods else {}

    def _refuse(self, changed: Sequence[str], prefix: str) -> None:
        if changed:
            raise ValueError(
                f"--out: {self.folder} holds a comparison with other settings ({prefix}"
                f"{', '.join(changed[:5])}); choose another folder, or the same settings"
            )

    @property
    def labels(self) -> list[str]:
        return list(self.plan.get("methods", {}))

    def settings(self, label: str) -> dict[str, Any]:
        """A method's own, over the base."""
        return self.plan["methods"][label]["settings"]

    def chosen(self, label: str) -> list[Trial]:
        """What the search chose for a method, for one budget or another; nothing before it."""
        return [trial for trial in self.trials if trial.label == label and trial.chosen]

    def add_trials(self, trials: Sequence[Trial]) -> None:
        self.trials += trials
        self._write("search.json", [asdict(trial) for trial in self.trials])

    def has(self, trial: Trial, seed: int) -> bool:
        return self._curve_file(trial, seed).is_file()

    def keep(self, run: Run, trial: Trial, seed: int) -> None:
        """A run is over: its curve stays, its model and checkpoints go."""
        source = Path(run.settings["output_dir"])
        points = read_curve(source / CURVE)
        if (source / DIVERGED).is_file():
            points[-1]["diverged"] = True
        target = self._curve_file(trial, seed)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, "".join(json.dumps(point) + "\n" for point in points))
        shutil.rmtree(source)

    def curves(self, trial: Trial) -> dict[int, list[dict[str, Any]]]:
        """Curves by seed."""
        files = self._curve_file(trial, 0).parent.glob("seed-*.jsonl")
        return {seed: read_curve(file) for seed, file in sorted((_seed(file), file) for file in files)}

    def commands(self, command: str, slowdown: float | None) -> list[str]:
        """Commands that the folder is made by, as they came first; behind each what seconds were divided by,
        one number for each time that it was measured, and 1.00 if it was begun without."""
        told = self._read("comparison.json", {}).get("commands", [command])
        known = {name: divisors for name, _, divisors in (line.partition(SLOWDOWN) for line in told)}
        if slowdown is not None:
            before = [known[command] or "1.00"] if command in known else []
            known[command] = ", ".join([*before, f"{slowdown:.2f}"])
        known.setdefault(command, "")
        return [name + (SLOWDOWN + divisors if divisors else "") for name, divisors in known.items()]

    def write(self, comparison: dict[str, Any], table: str) -> None:
        self._write("comparison.json", comparison)
        write_whole(self.folder / "README.md", table)

    def _curve_file(self, trial: Trial, seed: int) -> Path:
        return self.folder / "curves" / trial.label / f"candidate-{trial.number}" / f"seed-{seed}.jsonl"

    def _read(self, name: str, default: Any) -> Any:
        file = self.folder / name
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default
        except ValueError:
            raise ValueError(f"--out: {file} is not JSON; restore it or choose another folder") from None

    def _write(self, name: str, value: Any) -> None:
        write_whole(self.folder / name, json.dumps(value, indent=1) + "\n")


def _seed(file: Path) -> int:
    return int(file.stem.removeprefix("seed-"))
