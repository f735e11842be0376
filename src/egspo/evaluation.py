"""Evaluation: the sampler of training, a task's grader, and intervals that say how much a number means."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from egspo.config import BaseRun, EvalConfig, SamplerConfig
from egspo.ops import noise
from egspo.policy import Policy
from egspo.rewards import TaskScorer
from egspo.rollout import pad_prompts, rollout
from egspo.tasks.base import Task
from egspo.tracking import RunFolder, Screen
from egspo.types import Prompt

Evaluation = tuple[dict[str, Any], list[dict[str, Any]]]
"""The summary, and one record a problem."""


def eval_sampler(sampler: SamplerConfig, config: EvalConfig) -> SamplerConfig:
    """How evaluation decodes: as training does, greedily unless set otherwise."""
    changes = {"temperature": config.temperature, "remasking": config.remasking or sampler.remasking}
    return sampler.model_copy(update=changes)


def evaluate(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    batch_size: int = 256,
    seed: int = 0,
    split: str = "test",
    accelerator: Accelerator | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Complete and grade every problem; problems are shared out over the ranks of ``accelerator``.

    Returns:
        summary: ``task, model, split, n, accuracy, ci95, reward, counts`` and the decoding settings.
        items: ``index, id, correct, reward, extracted, reason, prompt, completion``.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = list(range(rank, len(prompts), world))
    items: list[dict[str, Any]] = []
    for start in range(0, len(mine), batch_size):
        chunk = mine[start : start + batch_size]
        items += _evaluate_batch(policy, task, [prompts[i] for i in chunk], chunk, sampler, seed)
        progress(len(items) * world)
    if accelerator is not None:
        items = gather_object(items)
    items.sort(key=lambda item: item["index"])
    settings = {"model": policy.source, "split": split, "seed": seed, **sampler.model_dump()}
    return summarise(items, task) | settings, items


def validate(
    policy: Policy,
    task: Task,
    config: BaseRun,
    step: int,
    folder: RunFolder,
    accelerator: Accelerator,
    screen: Screen,
) -> float:
    """A point of the validation curve, written down and told; returns the accuracy."""
    prompts = task.load("validation")[: config.eval.limit]
    sampler, size = eval_sampler(config.sampler, config.eval), config.eval.batch_size
    summary, items = evaluate(
        policy, task, prompts, sampler, size, split="validation", accelerator=accelerator
    )
    folder.write_evaluation(f"validation-{step:06d}", summary | {"step": step}, items)
    screen.say(f"step {step}: validation {summary['accuracy']:.1%}")
    return summary["accuracy"]


def _evaluate_batch(policy, task, prompts, index, sampler, seed) -> list[dict[str, Any]]:
    encoded = policy.encode_prompts([prompt.messages for prompt in prompts])
    prompt_ids, prompt_mask = pad_prompts(policy, encoded)
    seeds = noise.sample_seeds(seed, 0, torch.tensor(index, device=policy.device))
    trajectory = rollout(policy, prompt_ids, prompt_mask, seeds, sampler, batch_size=len(prompts))
    texts = policy.decode(trajectory.final)
    rewards, _, grades = TaskScorer(task).final(prompts, texts)
    return [
        {
            "index": i,
            "id": prompt.id,
            "correct": grade.correct,
            "reward": reward,
            "extracted": grade.extracted,
            "reason": grade.reason,
            "counts": {name: list(pair) for name, pair in grade.counts.items()},
            "prompt": prompt.messages[-1]["content"],
            "completion": text,
        }
        for i, prompt, text, reward, grade in zip(index, prompts, texts, rewards, grades, strict=True)
    ]


def summarise(items: Sequence[dict[str, Any]], task: Task) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval; finer counts (Sudoku cells) apart."""
    right, n = sum(item["correct"] for item in items), len(items)
    counts: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for item in items for name in item.get("counts", {})):
        pairs = [item["counts"][name] for item in items if name in item["counts"]]
        hits, of = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        counts[name] = {"right": hits, "of": of, "share": hits / max(1, of)}
    return {
        "task": task.name,
        "task_version": task.version,
        "n": n,
        "correct": right,
        "accuracy": right / max(1, n),
        "ci95": list(wilson(right, n)),
        "reward": sum(item["reward"] for item in items) / max(1, n),
        "counts": counts,
    }


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson, JASA 1927); the whole of [0, 1] for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
