"""What a comparison runs: methods over one base configuration, budgets, and one search for all."""

import copy
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.compare.section import CompareConfig, parse_compare
from egspo.compose import ConfigError, compose, find_recipe, merge, parse_override, read_yaml
from egspo.config import RLRun, brought_up, parse_config
from egspo.seen import seen_by

Values = dict[str, Any]
"""Settings by dotted name (``optim.learning_rate``)."""

SHARED = (
    "model.init",
    "model.model_name_or_path",
    "model.adapter",
    "eval.limit",
    "eval.temperature",
    "eval.remasking",
)
"""Base and evaluation, which all methods have in common, and besides the problems of the task."""
ENDLESS = 1_000_000
"""Iterations of a run that a number of seconds ends."""


@dataclass(frozen=True)
class Run:
    """One run, as its process is told of it."""

    label: str
    settings: dict[str, Any]
    decoding: dict[str, Any]
    """Sampler of its evaluations: the base's, whatever the method samples with in training."""
    split: str
    """Where it is evaluated: validation in the search, test afterwards."""
    eval_steps: int
    limits: dict[str, int | float]
    """It goes on until it has spent all of these: ``samples`` drawn, ``seconds`` of training."""
    marks: dict[str, list[int | float]]
    """By kind of budget, where it is evaluated besides."""
    slowdown: float = 1.0
    """Seconds of this machine for one of those that are recorded (`egspo.compare.speed`)."""


def marks_of(limit: int | float) -> list[int | float]:
    """Where a candidate that is judged at a limit is evaluated; its score is the mean, for less noise."""
    return [0.9 * limit, limit]


class Plan:
    """A comparison, resolved: which settings every run of every method has.

    Args:
        paths: files or recipes, and settings, as of ``egspo train``; one may hold a section ``compare``.
        objectives: labels of ``compare.methods``, names of objectives, or YAML files; all methods if empty.
        budget: ``samples`` and ``seconds`` over those of the section.

    Raises:
        ConfigError: with everything that is wrong, for all methods and candidates, before any run.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        overrides: Sequence[str],
        objectives: Sequence[str],
        budget: dict[str, int | float],
        with_search: bool = True,
    ):
        values = compose(paths, overrides)
        searched = {} if with_search else {"grid": {}, "own_grid": {}}
        self.config: CompareConfig = parse_compare(values.pop("compare", {}), budget | searched)
        self.base = {"output_dir": "runs/compare", **values}
        labels = list(objectives) or list(self.config.methods)
        if not labels:
            raise ConfigError(["--objectives: none; name some, or give a file with compare.methods"])
        if len({_label(name) for name in labels}) < len(labels):
            raise ConfigError([f"--objectives: {', '.join(labels)} has a label twice; name each method once"])
        self.methods = {_label(name): self._method(name) for name in labels}
        train = self.parsed(next(iter(self.methods))).train
        self.batch = train.prompts_per_step * train.num_generations
        self.samples = (
            math.ceil((self.config.samples or train.max_steps * self.batch) / self.batch) * self.batch
        )
        self.eval_steps = self.config.eval_steps or max(1, math.ceil(self.samples / self.batch / 10))
        self.check()

    @property
    def limits(self) -> dict[str, int | float]:
        """The budgets by kind: ``samples``, and ``seconds`` if there is one."""
        seconds = self.config.seconds
        return {"samples": self.samples} | ({"seconds": seconds} if seconds else {})

    def final(
        self, label: str, chosen: Values, seed: int, folder: Path, kinds: Sequence[str] | None = None
    ) -> Run:
        """A run with the settings that the search chose, to the budgets of some kinds; of all if None."""
        marks = {kind: [limit] for kind, limit in self.limits.items()}
        return self._run(label, chosen, seed, folder, "test", self._limits(1.0, kinds), marks)

    def trial(
        self, label: str, candidate: Values, rung: float, folder: Path, kinds: Sequence[str] | None = None
    ) -> Run:
        """A run of the search up to a rung, that is a share of the budgets of some kinds; of all if None."""
        # Of all rungs: a slow candidate may spend the seconds of a later one on the samples of this.
        marks = {
            kind: [mark for share in self.config.rungs for mark in marks_of(share * limit)]
            for kind, limit in self.limits.items()
        }
        limits = self._limits(rung, kinds)
        return self._run(label, candidate, self.config.search_seed, folder, "validation", limits, marks)

    def of(self, label: str, settings: dict[str, Any]) -> "Plan":
        """The plan for one method only, with settings that it had in an earlier plan."""
        plan = copy.copy(self)
        plan.methods = {label: settings}
        return plan

    def beside(self, methods: Mapping[str, dict[str, Any]], own_grid: Mapping[str, Any]) -> "Plan":
        """The plan with those methods too that an earlier one had, and what was tried for them alone."""
        plan = copy.copy(self)
        plan.methods = {**methods, **self.methods}
        plan.config = self.config.model_copy(update={"own_grid": {**own_grid, **self.config.own_grid}})
        return plan

    def parsed(self, label: str, candidate: Values | None = None) -> RLRun:
        """The configuration of a method, with settings that the search tries.

        Raises:
            ConfigError: with everything that is wrong with it.
        """
        return parse_config(RLRun, self._merged(label, candidate or {}))

    def candidates(self, label: str) -> list[Values]:
        """What the search tries for a method: every combination of its values."""
        grid = dict(self.config.grid if self.config.grid is not None else self._rates(label))
        grid |= self.config.own_grid.get(label, {})
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def shared(self) -> dict[str, Any]:
        """What all runs have in common, and results made with other than which do not fit in."""
        kept = ("grid", "own_grid", "rungs", "keep", "search_seed")
        search = {key: value for key, value in self.config.model_dump().items() if key in kept}
        own = search.pop("own_grid")
        budget = {"samples": self.samples, "seconds": self.config.seconds, "eval_steps": self.eval_steps}
        drop = ("output_dir", "resume", "tracking")
        base = {key: value for key, value in self.base.items() if key not in drop}
        return {"base": base, "budget": budget, "search": search, "own": own}

    def resolved(self, label: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A method's whole settings but for what the search chooses: defaults may change with the code.

        ``earlier``: not the plan's, but those that an earlier version resolved, as they would be today.
        """
        settings = self.final(label, {}, 0, Path("unused")).settings | dict(earlier or {})
        sections = brought_up(RLRun, settings)
        return {key: sections[key] for key in ("task", "sampler", "objective", "optim", "train")}

    @cached_property
    def seen(self) -> str:
        """Which of the problems that all are judged on the base was trained on (`egspo.seen`)."""
        run = self.parsed(next(iter(self.methods)))
        return seen_by(run.model, registry.make_task(run.task))

    def describe(self) -> str:
        """The plan in words, a line a method."""
        budget = f"{self.samples} samples" + (
            f", {self.config.seconds:g} seconds" if self.config.seconds else ""
        )
        lines = [
            f"budget: {budget} a run; evaluated every {self.eval_steps} iterations of {self.batch} samples"
        ]
        for label in self.methods:
            name = self._merged(label, {})["objective"]["name"]
            lines.append(f"{label:<16} {name}, {len(self.candidates(label))} candidates")
        told = self.seen
        return "\n".join([*lines, f"note: {told}"] if told else lines)

    def _rates(self, label: str) -> Values:
        rate = self.parsed(label).optim.learning_rate
        return {"optim.learning_rate": [float(f"{rate * factor:.3g}") for factor in (1 / 3, 1, 3)]}

    def _method(self, name: str) -> dict[str, Any]:
        """A method's settings over the base, with what its objective is defined with."""
        if name in self.config.methods:
            own = self.config.methods[name]
        elif name in registry.names("objectives"):
            own = {"objective": {"name": name}}
        elif name.endswith(".yaml"):
            own = read_yaml(find_recipe(name))
        else:
            known = [*self.config.methods, *registry.names("objectives")]
            raise ConfigError([f"--objectives: {name!r} is no method{registry.suggest(name, known)}"])
        objective = merge(self.base, own).get("objective", {})
        if not isinstance(objective, dict) or objective.get("name") not in registry.names("objectives"):
            return own  # what is wrong with it is told where it is checked
        needed = registry.load("objectives", objective["name"]).requires
        return merge({"sampler": dict(needed)}, own) if needed else own

    def _merged(self, label: str, chosen: Values) -> dict[str, Any]:
        values = merge(self.base, self.methods[label])
        for key, value in chosen.items():
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            values = merge(values, nested)
        return values

    def _limits(self, share: float, kinds: Sequence[str] | None) -> dict[str, int | float]:
        whole = math.ceil(share * self.samples / self.batch) * self.batch
        limits = {kind: whole if kind == "samples" else share * limit for kind, limit in self.limits.items()}
        return {kind: limit for kind, limit in limits.items() if kinds is None or kind in kinds}

    def _run(self, label, chosen, seed: int, folder: Path, split: str, limits, marks) -> Run:
        # Of all runs alike: one that goes on may have another limit than it began with.
        iterations = ENDLESS if self.config.seconds else self.samples // self.batch
        forced = {
            "output_dir": str(folder),
            "seed": seed,
            "resume": True,
            "train": {
                "max_steps": iterations,
                "save_steps": self.eval_steps,
                "save_total_limit": 1,
                "eval_steps": 0,
                "load_best_model_at_end": False,
                "num_transcripts": 0,
            },
        }
        values = merge(self._merged(label, chosen), forced)
        values.pop("tracking", None)
        decoding = self.base.get("sampler", {})
        return Run(label, values, decoding, split, self.eval_steps, limits, marks)

    def check(self) -> None:
        """Look at every run of every method.

        Raises:
            ConfigError: for whatever one would stumble over, and where methods share not what they must.
        """
        known = [*self.methods, *self.config.methods, *registry.names("objectives")]
        problems = [
            f"compare.own_grid.{label}: no method of that name{registry.suggest(label, known)}"
            for label in self.config.own_grid
            if label not in known
        ]
        for label in self.methods:
            for candidate in self.candidates(label):
                problems += self._problems(label, candidate)
        counts = {label: len(self.candidates(label)) for label in self.methods}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{label} {count}" for label, count in counts.items())
            problems.append(
                f"compare.own_grid: candidates differ in number ({told}); every method gets the same search"
            )
        if problems := problems or self._unlike():
            raise ConfigError(list(dict.fromkeys(problems)))

    def _unlike(self) -> list[str]:
        """Where a method has another base, other problems or another evaluation than the first."""
        told = "all share base, problems and evaluation, so set it for all"
        first, known = "", None
        found = []
        for label in self.methods:
            for candidate in self.candidates(label):
                common = _common(self.parsed(label, candidate))
                if known is None:
                    first, known = label, common
                found += [
                    f"{label}: {key}: {value!r} is not the {known.get(key)!r} of {first}; {told}"
                    for key, value in common.items()
                    if value != known.get(key)
                ]
        return found

    def _problems(self, label: str, candidate: Values) -> list[str]:
        try:
            run = parse_config(RLRun, self.final(label, candidate, 0, Path("unused")).settings)
        except ConfigError as error:
            return [f"{label}: {line}" for line in error.problems]
        found = []
        if run.train.prompts_per_step * run.train.num_generations != self.batch:
            found.append(
                f"{label}: {run.train.prompts_per_step} prompts of {run.train.num_generations} completions "
                f"are not the {self.batch} samples of the others; set them in the base alone"
            )
        if self.config.seconds and run.optim.lr_scheduler_type != "constant":
            found.append(
                f"{label}: optim.lr_scheduler_type: {run.optim.lr_scheduler_type!r} needs a length known in "
                "advance, which a budget in seconds has not; use constant"
            )
        return found


def parse_budget(given: Sequence[str]) -> dict[str, int | float]:
    """``samples=N`` and ``seconds=S``.

    Raises:
        ValueError: for anything else.
    """
    budget: dict[str, int | float] = {}
    for text in given:
        values = parse_override(text) if "=" in text else {}
        if set(values) - {"samples", "seconds"} or not values:
            raise ValueError(f"--budget: {text!r}; give samples=N or seconds=S")
        budget |= values
    return budget


def _common(run: RLRun) -> Values:
    problems = {f"task.{key}": value for key, value in run.task if key != "reward_weights"}
    return {key: operator.attrgetter(key)(run) for key in SHARED} | problems


def _label(name: str) -> str:
    return Path(name).stem if name.endswith(".yaml") else name
