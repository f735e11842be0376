"""A run walked through without its weights: what would be trained, on what, for how long. Writes nothing."""

import contextlib
import math
from collections.abc import Mapping, Sequence

from egspo import launch, registry
from egspo.config import BaseRun, SFTRun
from egspo.data import encode_problems, read_pairs, solved
from egspo.evaluation import check_validation
from egspo.footprint import build_shape
from egspo.hub import Unreachable
from egspo.policy import Policy, tokenizer_of
from egspo.rollout import check_sampler
from egspo.seen import seen_by
from egspo.tasks.base import Task
from egspo.types import Prompt

Findings = list[tuple[str, str]]
"""(subject, finding) pairs, in the order to show them."""
UNCHECKED = "NOT CHECKED"


def findings(config: BaseRun) -> Findings:
    """What a run of a checked configuration would do; ``NOT CHECKED`` stands where that cannot be seen here.

    Raises:
        ValueError: for what would end the run: broken data, an unknown model, targets that match nothing,
            programs that cannot be locked up here.
    """
    task = _task(config)
    prompts, weights, found = _problems(config, task)
    policy, about = _model(config, task)
    found += about
    found += _prompts(config, policy, prompts, weights)
    if policy is not None and task is not None and _of(config).eval_steps:
        with contextlib.suppress(Unreachable):  # said already
            check_validation(policy, task, config)
    if isinstance(config, SFTRun):
        return found + _sft_work(config)
    told = seen_by(config.model, task)
    return found + ([("note", told)] if told else []) + _rl_work(config)


def _task(config: BaseRun) -> Task | None:
    if config.task is None:
        return None
    task = registry.make_task(config.task)
    task.prepare(config.sandbox)
    return task


# ---- data ----------------------------------------------------------------------------------------------


def _problems(config: BaseRun, task: Task | None) -> tuple[Sequence[Prompt], Mapping[str, float], Findings]:
    """What is trained on, by which weights of its tasks, and how many there are of everything."""
    prompts: Sequence[Prompt] = []
    weights, found, own = {}, [], True
    if isinstance(config, SFTRun) and config.sft.dataset is not None:
        own = False
        found.append((UNCHECKED, f"hub data set {config.sft.dataset!r}, which is not fetched for this"))
    elif isinstance(config, SFTRun) and config.sft.data is not None:
        own, prompts = False, read_pairs(config.sft.data)
        found.append(("data", f"{len(prompts)} pairs in {config.sft.data}"))
    if task is None:
        return prompts, weights, found
    try:
        if own:
            prompts = solved(task) if isinstance(config, SFTRun) else task.load("train")
            weights = task.train_weights
        used = ("train", "validation") if _of(config).eval_steps else ("train",)
        counts = ", ".join(f"{len(task.load(split))} {split}" for split in used)
        found.append(("task", f"{task.name}: {counts}"))
    except Unreachable as error:
        found.append((UNCHECKED, f"problems of {task.name}: {_first(error)}"))
    found.append(("reward", ", ".join(f"{v:g} {k}" for k, v in task.reward_weights.items() if v)))
    return prompts, weights, found


def _prompts(
    config: BaseRun, policy: Policy | None, prompts: Sequence[Prompt], weights: Mapping[str, float]
) -> Findings:
    """Lengths, with the errors that the run would end with."""
    if not prompts:  # said already
        return []
    if policy is None:
        return [(UNCHECKED, "lengths of the prompts: the tokenizer is not here")]
    canvas, longest = config.sampler.max_completion_length, _of(config).max_prompt_length
    field = f"{'sft' if isinstance(config, SFTRun) else 'train'}.max_prompt_length"
    problems = encode_problems(policy, prompts, longest, field, weights)
    lengths = [len(ids) for ids in problems.encoded]
    if isinstance(config, SFTRun):
        for prompt in problems.prompts:
            policy.encode_completion(prompt.solution, canvas)
    skipped = f"{problems.skipped} skipped as longer than {field} {longest}"
    check_sampler(policy, config.sampler, max(lengths))
    return [("prompts", f"{len(problems)} of {min(lengths)} to {max(lengths)} tokens, {skipped}")]


def _of(config: BaseRun):
    """The section of the loop."""
    return config.sft if isinstance(config, SFTRun) else config.train


# ---- model ---------------------------------------------------------------------------------------------


def _model(config: BaseRun, task: Task | None) -> tuple[Policy | None, Findings]:
    """A policy without weights, if a tokenizer is at hand, and what it is."""
    model, number = config.model, task.max_number_token if task else None
    try:
        tokenizer = tokenizer_of(model, number)
    except Unreachable as error:
        return None, [(UNCHECKED, f"model, tokenizer, LoRA targets: {_first(error)}")]
    found = [(UNCHECKED, "weights of the adapter")] if model.adapter else []
    try:
        shape = build_shape(model, number)
    except Unreachable as error:
        found = [(UNCHECKED, f"adapter: {_first(error)}")]
        shape = build_shape(model.model_copy(update={"adapter": None}), number)
    trained = sum(p.numel() for p in shape.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in shape.model.parameters() if not p.requires_grad)
    name = f"fresh {model.init}" if model.init else model.model_name_or_path
    about = f"{shape.family.name}, {_count(frozen or trained)} parameters, {_count(trained)} trained"
    return Policy(shape.model, tokenizer, name), [("model", f"{name}: {about}"), *found]


def _first(error: Exception) -> str:
    """Without the hub's own words."""
    return str(error).partition(" (")[0]


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f}M" if number >= 1e6 else f"{number:,}"


# ---- work ----------------------------------------------------------------------------------------------


def _sft_work(config: SFTRun) -> Findings:
    sft = config.sft
    return [("steps", f"{sft.max_steps} of {sft.batch_size} examples, a forward and backward pass each")]


def _rl_work(config: BaseRun) -> Findings:
    train, sampler, world = config.train, config.sampler, launch.world_size()
    samples = train.prompts_per_step * train.num_generations
    objective = registry.load("objectives", config.objective.name)(config.objective)
    a_step = objective.proxy.num_passes if objective.proxy else 1
    passes = sampler.diffusion_steps * a_step * (2 if sampler.cfg_scale else 1)
    calls = passes * math.ceil(samples / world / train.rollout_batch_size)
    updates = train.num_iterations * train.updates_per_rollout
    found = [
        ("iterations", f"{train.max_steps} of {train.prompts_per_step} prompts x {train.num_generations}"),
        (
            "rollout",
            f"{samples} completions x {passes} passes = {samples * passes} an iteration, in {calls} calls",
        ),
        ("updates", f"{updates} an iteration, {updates * train.max_steps} in all"),
    ]
    trained = objective.num_replayed * updates or samples * train.num_iterations
    canvases = trained * objective.num_views(sampler)
    beside = ", as many for the reference" if config.objective.beta else ""
    found.append(("training", f"at most {canvases} passes forward and back an iteration{beside}"))
    return found
