"""How good is each method's gradient? Measured directly at a fixed policy, without a learning run.

    python benchmarks/gradient_quality.py --task sudoku
    python benchmarks/gradient_quality.py --task countdown --prompts 4 --only egspo-sa,all-steps,wd1
    python benchmarks/gradient_quality.py --task countdown --arms mine=egspo,selection=random
    python benchmarks/gradient_quality.py --exact sampler.remasking=top_prob

Every arm (an objective with settings) is given the same rollout batches, and the gradient that the trainer
would step with is compared with the plain policy gradient over all steps, averaged over other batches; with
``--exact``, on the toy task, with the enumerated gradient of the expected reward. docs/gradient_quality.md
defines what is measured. An interrupted command goes on, and arms can be added later: batches are functions
of the seed. Results go to ``benchmarks/results/gradient-LABEL``, vectors to ``runs/gradient/LABEL``.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

from egspo import registry
from egspo.compose import ConfigError, merge
from egspo.config import SFTRun, parse_config
from egspo.policy import Policy, build_policy, load_policy
from egspo.sft import SFTTrainer
from gradient.arms import BASELINE, REFERENCE, Arm, distinct, make_arm, parse_arms, run_settings, table
from gradient.exact import enumerated_ascent
from gradient.measure import Plan, Store, make_reference, measure
from gradient.probe import Probe
from gradient.table import own_arms, summarise, write_setup

SMALL_TOY = ("task.num_symbols=3", "objective.num_selected_steps=1", "sampler.remasking=top_prob")
"""The toy task small enough to enumerate, one of two steps selected, under a rule that is scored exactly."""
TOY_SFT_STEPS = 12


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    try:
        run(options)
    except ValueError as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the configuration of all arms")
    parser.add_argument("--task", choices=["sudoku", "countdown", "countdown4"], default="sudoku")
    parser.add_argument("--exact", action="store_true", help="the toy task, against its enumerated gradient")
    parser.add_argument("--label", help="default: the task")
    parser.add_argument("--arms", nargs="*", default=[], help="NAME=OBJECTIVE,key=value,… beside the table's")
    parser.add_argument("--only", help="names of arms, separated by commas; default: all")
    parser.add_argument("--batches", type=int, default=200, help="that arms are judged on")
    parser.add_argument("--reference-batches", type=int, default=400, help="that make the reference")
    parser.add_argument("--blocks", type=int, default=20, help="of batches, for the intervals")
    parser.add_argument("--prompts", type=int, default=16, help="of a batch")
    parser.add_argument("--reference-prompts", type=int, help="of a batch of the reference; default: same")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path("runs/gradient"))
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Measure whatever is missing, and write the table of all that is there.

    Raises:
        ValueError: for an impossible option.
    """
    plan = Plan(options.batches, options.reference_batches, options.blocks)
    task = "toy" if options.exact else options.task
    overrides = [*SMALL_TOY, *options.overrides] if options.exact else options.overrides
    base = run_settings(task, options.prompts, options.generations, overrides)
    label = options.label or task
    store = Store(options.results / f"gradient-{label}", options.cache / label)
    own = own_arms(store.folder) | parse_arms(options.arms)
    known = known_arms(own, base)
    arms = known if options.only is None else choose(known, options.only)
    reference_arm = reference_of(options, task, overrides)
    about = describe(options, base, label, task, reference_arm, store)
    for folder in (store.cache, store.folder):  # what the cache holds may be of other results
        write_setup(folder, about, arms, own)
    if not store.is_finished(arms, plan):
        fill(options, base, reference_arm, arms, store, plan)
    store.publish()
    summarise(store, known, plan, about)
    print((store.folder / "README.md").read_text(encoding="utf-8"))


def fill(
    options: argparse.Namespace, base: dict, reference_arm: Arm, arms: list[Arm], store: Store, plan: Plan
) -> None:
    """Measure what is missing, the reference first."""
    probe = make_probe(options, base, arms[0], store)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    if options.exact:
        reference = enumerated_ascent(probe)[None]
        store.keep_reference(reference)
    else:
        reference = make_reference(probe, reference_arm, store, plan, say)
    measure(probe, arms, reference, store, plan, say)


def known_arms(own: dict[str, str], base: dict) -> list[Arm]:
    """The table's arms, but for those that the sampler rules out, and those of command lines."""
    steps, chosen = base["sampler"]["diffusion_steps"], base["objective"]["num_selected_steps"]
    arms: list[Arm] = []
    left_out: dict[str, list[str]] = {}
    for name, line in (table(steps, chosen) | own).items():
        try:
            arms.append(make_arm(name, line, base))
        except ConfigError as error:
            if name in own:
                raise
            left_out.setdefault(str(error), []).append(name)
    for reason, names in left_out.items():
        print(f"left out: {', '.join(names)}: {reason}", file=sys.stderr)
    return distinct(arms)


def choose(known: list[Arm], only: str) -> list[Arm]:
    """The arms named, EGSPO-SA always among them.

    Raises:
        ValueError: for an unknown name.
    """
    names = {name: arm for arm in known for name in (arm.name, *arm.also)}
    wanted = [BASELINE, *only.split(",")]
    for name in wanted:
        if name not in names:
            raise ValueError(f"--only: unknown arm {name!r}{registry.suggest(name, names)}")
    return list({names[name].name: names[name] for name in wanted}.values())


def reference_of(options: argparse.Namespace, task: str, overrides: list[str]) -> Arm:
    """The plain policy gradient over all steps, on batches of a size of their own."""
    prompts = options.reference_prompts or options.prompts
    base = run_settings(task, prompts, options.generations, overrides)
    lines = table(base["sampler"]["diffusion_steps"], base["objective"]["num_selected_steps"])
    return make_arm(REFERENCE, lines[REFERENCE], base)


def make_probe(options: argparse.Namespace, base: dict, arm: Arm, store: Store) -> Probe:
    """A trainer on the policy whose gradient is asked for; ``arm`` only to set it up."""
    task = registry.make_task(arm.config.task)
    policy = toy_policy(base, store) if options.exact else build_policy(arm.config.model, arm.config.seed)
    return Probe(policy, task, arm)


def toy_policy(base: dict, store: Store) -> Policy:
    """A tiny model that has begun to learn the toy task from its solutions."""
    folder = store.cache / "sft"
    if not (folder / "model" / "config.json").is_file():
        values = {key: base[key] for key in ("model", "task", "sampler")}
        sft = {"max_steps": TOY_SFT_STEPS, "batch_size": 64, "save_steps": 0}
        values |= {"output_dir": str(folder), "optim": {"learning_rate": 2e-3}, "sft": sft}
        config = parse_config(SFTRun, merge({}, values))
        SFTTrainer(build_policy(config.model), registry.make_task(config.task), config).train()
    return load_policy(folder / "model")


def commands(folder: Path) -> list[str]:
    """Command lines that the folder is made by, this one last if it is new."""
    summary = folder / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8"))["commands"] if summary.is_file() else []
    return list(dict.fromkeys([*known, " ".join(["python", *sys.argv])]))


def describe(options, base: dict, label: str, task: str, reference: Arm, store: Store) -> dict:
    """What a reader must know to check the numbers."""
    prompts = reference.config.train.prompts_per_step
    samples = prompts * options.generations
    averaged = f"{REFERENCE}, {options.reference_batches} batches of {samples} completions"
    return {
        "label": label,
        "commands": commands(store.folder),
        "machine": f"{len(os.sched_getaffinity(0))} cores, one used, {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}",
        "model": f"fresh, {TOY_SFT_STEPS} SFT steps" if options.exact else base["model"],
        "task": base["task"],
        "sampler": base["sampler"],
        "seed": base.get("seed", 0),
        "batches": options.batches,
        "blocks": options.blocks,
        "completions": options.prompts * options.generations,
        "reference": "enumerated" if options.exact else averaged,
    }


if __name__ == "__main__":
    main()
