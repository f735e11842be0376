"""What is compared: objectives with their settings, each checked as the configuration of a whole run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from egspo import registry
from egspo.compose import compose, find_recipe, merge, parse_override, read_yaml, recipes
from egspo.config import RLRun, parse_config
from egspo.ops.advantages import BASELINES
from egspo.ops.selection import SELECTIONS, Draws
from egspo.settings import shipped_settings

BASELINE = "egspo-sa"
"""EGSPO-SA as the task's recipe has it: what all others are compared with."""
REFERENCE = "all-steps"
"""The plain policy gradient over all steps, whose mean over many batches is the reference."""
FILES = {"toy": ("debug/toy",)}
"""Recipes of a task where they are not ``TASK/task`` and ``TASK/rl``."""
CHOSEN = (1, 2, 4, 8)
WEIGHTS = (0, 0.25, 0.5, 1, 2)
ENTROPY_LEFT = (0.05, 0.1, 0.2, 0.4)
VALUE_SAMPLES = (1, 4, 16)
VALUE_PASSES = (2, 3)
COUNTS = ("num_selected_steps", "num_sampled_steps", "num_segments", "steps_per_slice")
"""Settings that count denoising steps, of which tiny models have fewer than the published 128."""
ONE_UPDATE: dict[str, Any] = {
    "output_dir": "runs/gradient",
    "train": {
        "num_iterations": 1,
        "updates_per_rollout": 1,
        "update_split": "samples",
        "microbatch_size": 128,
        "rollout_batch_size": 1024,
        "max_steps": 1,
        "eval_steps": 0,
    },
    "optim": {"max_grad_norm": 1e30},
}
"""The whole gradient of a rollout in one update, never clipped."""


@dataclass(frozen=True)
class Arm:
    """An objective with its settings. ``old`` and ``reference``: what an update of its recipe also costs,
    a forward pass of each canvas, which the measurement at the first update and without KL does not.
    """

    name: str
    config: RLRun
    old: bool
    reference: bool
    also: tuple[str, ...] = ()
    """Names of the table that come down to the same settings."""

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this arm from others of the same name."""
        return {
            "objective": self.config.objective.model_dump(mode="json"),
            "sampler": self.config.sampler.model_dump(mode="json"),
        }

    def agrees(self, settings: Mapping[str, Any]) -> bool:
        """Whether an earlier version's settings mean the same; what it did not know has its default here."""
        for section in ("objective", "sampler"):
            model, known = getattr(self.config, section), settings[section]
            for key, field in type(model).model_fields.items():
                default = field.get_default(call_default_factory=True)
                if known.get(key, default) != self.settings[section][key]:
                    return False
        return True


def run_settings(task: str, prompts: int, generations: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A task's recipe on the base that is shipped for it, as settings of one unclipped update.

    Raises:
        ConfigError: for an unknown task or an impossible override.
    """
    values = compose(FILES.get(task, (f"{task}/task", f"{task}/rl")))
    shipped = f"{task}-sft"
    if task not in FILES:
        model = {"model": {"model_name_or_path": f"tiny:{shipped}"}}
        # The problems are those that the base was made for: its task's seed may differ from the recipe's.
        values = merge(values, model | {"task": shipped_settings(shipped).get("task", {})})
    sizes = {"train": {"prompts_per_step": prompts, "num_generations": generations}}
    for override in overrides:
        values = merge(values, parse_override(override))
    return merge(merge(values, ONE_UPDATE), sizes)


def table(steps: int, chosen: int) -> dict[str, str]:
    """Arms by name, as ``OBJECTIVE_OR_RECIPE,key=value,…``; ``steps`` and ``chosen`` are the sampler's steps
    and the recipe's K.

    An objective starts from the task's recipe if that is its own, else from ``objectives/NAME``.
    """
    plain = "egspo,step_advantage_weight=0"
    arms = {BASELINE: "egspo", REFERENCE: f"{plain},selection=all,baseline=leave_one_out"}
    arms |= {name: name for name in map(_recipe_name, _objective_recipes())}
    arms |= {name: name for name in registry.names("objectives") if name not in arms and name != "egspo"}
    # What it would replay belongs to other batches.
    arms["sure"] = "sure,num_replayed=0"
    arms |= {
        f"{name}-{chosen}": f"{name},{key}={chosen}"
        for name, key in (
            ("agrpo", "num_sampled_steps"),
            ("mdpo", "num_selected_steps"),
            ("d2_stepmerge", "num_segments"),
        )
    }
    revealed = "mdpo,actions=revealed"
    arms |= {"mdpo-revealed": revealed, f"mdpo-revealed-{chosen}": f"{revealed},num_selected_steps={chosen}"}
    arms |= {f"tracerl-{size}": f"tracerl,steps_per_slice={size}" for size in (1, 2)}
    arms["all-steps-sa"] = "egspo,selection=all"
    arms["all-steps-none"] = f"{plain},selection=all,baseline=none"
    rules = [rule for rule in (*SELECTIONS, *get_args(Draws)) if rule not in ("all", "adaptive")]
    for number in sorted({*CHOSEN, chosen}):
        if number < steps:
            some = f"num_selected_steps={number}"
            arms |= {f"{rule}-{number}": f"egspo,selection={rule},{some}" for rule in rules}
            arms[f"vospo-{number}"] = f"vospo,{some}"
    for left in ENTROPY_LEFT:
        arms[f"adaptive-{left}"] = f"egspo,selection=adaptive,num_selected_steps={steps},entropy_left={left}"
    arms |= {f"values-{number}": f"egspo,step_value_samples={number}" for number in VALUE_SAMPLES}
    arms |= {f"passes-{number}": f"egspo,step_value_passes={number}" for number in VALUE_PASSES}
    for weight in WEIGHTS:
        arms[f"lambda-{weight}"] = f"egspo,step_advantage_weight={weight}"
        if weight:
            arms[f"lambda-{weight}-linear"] = f"{arms[f'lambda-{weight}']},step_advantage_schedule=linear"
    arms["fitted"] = "egspo,step_advantage_weight=fitted"
    for baseline in BASELINES:
        arms[f"baseline-{baseline}"] = f"egspo,baseline={baseline}"
        arms[f"baseline-{baseline}-plain"] = f"{plain},baseline={baseline}"
    return arms


def make_arm(name: str, text: str, base: Mapping[str, Any]) -> Arm:
    """An arm from its line of the table; ``base`` is what `run_settings` gave.

    Keys without a dot are the objective's, others those of any section (``sampler.remasking=top_prob``).

    Raises:
        ConfigError: for an unknown objective or key, and for an impossible value.
    """
    start, *settings = text.split(",")
    values = _start(start, base)
    for setting in settings:
        key = setting if "." in setting.partition("=")[0] else f"objective.{setting}"
        values = merge(values, parse_override(key))
    objective = values["objective"]
    steps = values["sampler"]["diffusion_steps"]
    kind = registry.load("objectives", objective["name"])
    train = values["train"] if start == base["objective"]["name"] else _recipe(start).get("train", {})
    several = train.get("num_iterations", 1) * train.get("updates_per_rollout", 1) > 1
    reference = bool(objective.get("beta", kind.Config.model_fields["beta"].default))
    counts = {key: min(value, steps) for key, value in objective.items() if key in COUNTS}
    values = merge(values, {"objective": {"name": objective["name"]} | counts | {"beta": 0.0}})
    return Arm(name, parse_config(RLRun, values), kind.wants_old_scores and several, reference)


def _start(start: str, base: Mapping[str, Any]) -> dict[str, Any]:
    if start == base["objective"]["name"]:
        return dict(base)
    objective = _recipe(start).get("objective", {"name": start})
    values = dict(base) | {"objective": objective}
    required = dict(registry.load("objectives", objective["name"]).requires)
    if start == "just_grpo":
        required["diffusion_steps"] = base["sampler"]["max_completion_length"]
    return merge(values, {"sampler": required})


def _recipe(name: str) -> dict[str, Any]:
    known = f"objectives/{name}"
    return read_yaml(find_recipe(known)) if known in recipes() else {}


def _objective_recipes() -> list[str]:
    return [name for name in recipes() if name.startswith("objectives/")]


def _recipe_name(recipe: str) -> str:
    return recipe.removeprefix("objectives/")


def distinct(arms: Sequence[Arm]) -> list[Arm]:
    """Arms without those that have the settings of an earlier one, which is told their names."""
    by_settings: dict[str, Arm] = {}
    for arm in arms:
        key = json.dumps(arm.settings, sort_keys=True)
        first = by_settings.setdefault(key, arm)
        if first is not arm:
            by_settings[key] = replace(first, also=(*first.also, arm.name))
    return list(by_settings.values())


def parse_arms(lines: Sequence[str]) -> dict[str, str]:
    """``NAME=OBJECTIVE,key=value,…`` of the command line.

    Raises:
        ValueError: for a line without a name or an objective.
    """
    arms = {}
    for line in lines:
        name, _, text = line.partition("=")
        if not name or not text:
            raise ValueError(f"--arms: {line!r}; give NAME=OBJECTIVE,key=value,…")
        arms[name] = text
    return arms
