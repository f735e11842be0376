"""Evaluation: the sampler of training, a task's grader, and intervals that say how much a number means."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from egspo.answerlog import Answer, AnswerLog, fingerprints
from egspo.config import BaseRun, SamplerConfig
from egspo.ops import intervals, noise
from egspo.policy import Policy
from egspo.rewards import TaskScorer
from egspo.rollout import check_sampler, pad_prompts, rollout
from egspo.tasks.base import Task
from egspo.tracking import RunFolder, Screen
from egspo.types import Prompt

Evaluation = tuple[dict[str, Any], list[Answer]]
"""The summary, and one record an answer."""


@dataclass(frozen=True)
class Question:
    """One completion that is asked for."""

    seed: int
    index: int
    """Number of the problem."""
    sample: int
    """Number of the completion among those of its problem and seed."""
    prompt: Prompt


def evaluate(
    policy: Policy,
    task: Task,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    batch_size: int = 256,
    seed: int | Sequence[int] = 0,
    split: str = "test",
    accelerator: Accelerator | None = None,
    progress: Callable[[int], None] = lambda done: None,
    num_samples: int = 1,
    pass_at_k: Sequence[int] = (),
    num_fewshot: int = 0,
    log: AnswerLog | None = None,
) -> Evaluation:
    """Complete and grade every problem; the work is shared out over the ranks of ``accelerator``.

    A completion depends on its problem, its number and its seed alone: neither ``batch_size`` nor the number
    of ranks changes it.

    Args:
        batch_size: completions a forward pass, on each rank.
        seed: of the draws and of the choice of examples; each of several asks every problem anew.
        num_samples: completions a problem and seed.
        pass_at_k: the k of pass@k; default: 1 and ``num_samples``, where that is more than one.
        num_fewshot: solved training problems, drawn by the seed, that every problem is asked after.
        log: file that answers are added to as they come; those that it holds are not asked for again.

    Returns:
        summary: ``task, model, split, n, accuracy, ci95, reward, counts, pass_at_k, by_seed, over_seeds``
            and the decoding settings (docs/evaluation.md).
        items: ``index, id, sample, seed, correct, reward, extracted, reason, prompt, completion``.

    Raises:
        ValueError: if samples or seeds could not differ, a k of pass@k exceeds the samples, there are not so
            many examples, or ``log`` holds answers of other settings.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    ks = list(pass_at_k) or ([1, num_samples] if num_samples > 1 else [])
    check_samples(num_samples, ks)
    _check_spread(sampler, seeds, num_samples, num_fewshot)
    examples = [draw_examples(task, prompts, num_fewshot, s) for s in seeds]
    asked = [[_after(shown, prompt) for prompt in prompts] for shown in examples]
    questions = _questions(seeds, asked, num_samples)
    settings = _named(policy, task, split) | {"seed": seeds[0], "seeds": seeds}
    settings |= {"num_samples": num_samples, "num_fewshot": num_fewshot, **sampler.model_dump()}
    if log is not None:
        settings["fingerprints"] = fingerprints(policy, task, asked)
    unit = batch_size * (accelerator.num_processes if accelerator else 1)
    items = [] if log is None else _resume(log, settings, questions, unit, accelerator)
    if items:
        progress(len(items))
    for answers in _answer(policy, task, questions[len(items) :], sampler, unit, accelerator):
        if log is not None and (accelerator is None or accelerator.is_main_process):
            log.append(answers)
        items += answers
        progress(len(items))
    shown_ids = [[example.id for example in shown] for shown in examples]
    return summarise(items, task, ks, shown_ids) | settings, items


def _named(policy: Policy, task: Task, split: str) -> dict[str, str | None]:
    """What is evaluated, on what."""
    data = task.config.data
    return {
        "task": task.name,
        "task_version": task.version,
        "model": policy.source,
        "split": split,
        "data": data.name if data else None,
    }


def _questions(seeds: Sequence[int], asked: Sequence[Sequence[Prompt]], num_samples: int) -> list[Question]:
    """All completions in the order in which they are asked for: by seed, by problem, by number."""
    return [
        Question(seed, i, sample, prompt)
        for seed, prompts in zip(seeds, asked, strict=True)
        for i, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]


def check_samples(num_samples: int, ks: Sequence[int]) -> None:
    """Raises ValueError for no sample, or a k of pass@k that so many samples cannot tell of."""
    if num_samples < 1:
        raise ValueError(f"num_samples: {num_samples}; draw at least 1 completion a problem")
    for k in ks:
        if not 1 <= k <= num_samples:
            raise ValueError(
                f"pass_at_k: {k} is not between 1 and num_samples {num_samples}; draw at least {max(1, k)} "
                "completions a problem (--num-samples)"
            )


def _check_spread(sampler: SamplerConfig, seeds: Sequence[int], num_samples: int, num_fewshot: int) -> None:
    """Raises ValueError if several completions were asked for that cannot differ."""
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds: {list(seeds)}; give one or more, each once")
    if sampler.temperature > 0 or sampler.remasking in ("random", "plackett_luce"):
        return
    remedy = "are all the same at temperature 0; set sampler.temperature=0.8, or another above 0"
    if num_samples > 1:
        raise ValueError(f"num_samples: {num_samples} completions of a problem {remedy}, or draw one")
    if len(seeds) > 1 and not num_fewshot:
        raise ValueError(f"seeds: answers of {len(seeds)} seeds {remedy}, or give one seed")


def draw_examples(task: Task, prompts: Sequence[Prompt], num: int, seed: int) -> list[Prompt]:
    """Solved training problems, other than those asked, to show before each; the same for the same seed.

    Raises:
        ValueError: if there are fewer.
    """
    if num == 0:
        return []
    solved = [prompt for prompt in task.load("train") if prompt.solution is not None]
    if not solved:
        raise ValueError(
            f"num_fewshot: {num}, but the training problems of {task.name} come without solutions; use 0"
        )
    asked = {prompt.messages[-1]["content"] for prompt in prompts}
    pool = [prompt for prompt in solved if prompt.messages[-1]["content"] not in asked]
    if not 0 < num <= len(pool):
        raise ValueError(
            f"num_fewshot: {num} of the {len(pool)} solved training problems of {task.name} that are not "
            f"asked themselves; use 0 to {len(pool)}"
        )
    return random.Random(f"{seed} fewshot").sample(pool, num)


def _after(examples: Sequence[Prompt], prompt: Prompt) -> Prompt:
    """A problem asked after solved ones, as earlier turns of the chat; a system message stands once."""
    if not examples:
        return prompt
    turns = [
        turn
        for example in examples
        for turn in (*_without_system(example), {"role": "assistant", "content": example.solution})
    ]
    system = [turn for turn in prompt.messages if turn["role"] == "system"]
    return replace(prompt, messages=(*system, *turns, *_without_system(prompt)))


def _without_system(prompt: Prompt) -> list:
    return [turn for turn in prompt.messages if turn["role"] != "system"]


def _resume(log: AnswerLog, settings, questions, unit, accelerator: Accelerator | None) -> list[Answer]:
    """What the log holds, on every rank, or the main one's complaint on every rank."""
    found: list[Any] = [None]
    if accelerator is None or accelerator.is_main_process:
        keys = [{"index": q.index, "sample": q.sample, "seed": q.seed} for q in questions]
        try:
            found = [log.resume(settings, keys, unit)]
        except ValueError as error:
            found = [error]
    if accelerator is not None and accelerator.num_processes > 1:
        broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    return found[0]


def _answer(
    policy: Policy, task: Task, questions: Sequence[Question], sampler, unit: int, accelerator
) -> Iterator[list[Answer]]:
    """Answers in the order of the questions, ``unit`` at a time, on every rank."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    for start in range(0, len(questions), unit):
        chunk = questions[start : start + unit]
        mine = list(range(rank, len(chunk), world))
        answers = _complete(policy, task, [chunk[i] for i in mine], sampler) if mine else []
        placed = list(zip(mine, answers, strict=True))
        if accelerator is not None:
            placed = gather_object(placed)
        yield [answer for _, answer in sorted(placed, key=lambda pair: pair[0])]


def _complete(policy: Policy, task: Task, questions: Sequence[Question], sampler) -> list[Answer]:
    prompts = [question.prompt for question in questions]
    encoded = policy.encode_prompts([prompt.messages for prompt in prompts])
    prompt_ids, prompt_mask = pad_prompts(policy, encoded)
    draws = [noise.sample_seeds(q.seed, q.sample, torch.tensor([q.index])) for q in questions]
    seeds = torch.cat(draws).to(policy.device)
    trajectory = rollout(policy, prompt_ids, prompt_mask, seeds, sampler, batch_size=len(prompts))
    texts = policy.decode(trajectory.final)
    rewards, _, grades = TaskScorer(task).final(prompts, texts)
    return [
        {
            "index": question.index,
            "id": question.prompt.id,
            "sample": question.sample,
            "seed": question.seed,
            "correct": grade.correct,
            "reward": reward,
            "extracted": grade.extracted,
            "reason": grade.reason,
            "counts": {name: list(pair) for name, pair in grade.counts.items()},
            "prompt": question.prompt.messages[-1]["content"],
            "completion": text,
        }
        for question, text, reward, grade in zip(questions, texts, rewards, grades, strict=True)
    ]


def check_validation(policy: Policy, task: Task, config: BaseRun) -> None:
    """Whether the problems of validation fit the model, which else shows after many iterations.

    Raises:
        ValueError: if one is too long.
    """
    prompts = task.load("validation")[: config.eval.limit]
    longest = max(map(len, policy.encode_prompts([prompt.messages for prompt in prompts])))
    try:
        check_sampler(policy, config.eval.sampler(config.sampler), longest)
    except ValueError as error:
        raise ValueError(f"{error}; that prompt is one of validation") from None


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
    sampler, size = config.eval.sampler(config.sampler), config.eval.batch_size
    summary, items = evaluate(
        policy, task, prompts, sampler, size, split="validation", accelerator=accelerator
    )
    folder.write_evaluation(f"validation-{step:06d}", summary | {"step": step}, items)
    screen.say(f"step {step}: validation {summary['accuracy']:.1%}")
    return summary["accuracy"]


def summarise(
    items: Sequence[Answer], task: Task, ks: Sequence[int] = (), fewshot: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Scores over all answers, and those of each seed; ``fewshot`` names the examples that each seed drew.

    Intervals of proportions are Wilson's, with the problems as the independent units; that over seeds is
    Student's.
    """
    seeds = list(dict.fromkeys(item["seed"] for item in items))
    rows = [_scores([item for item in items if item["seed"] == seed], ks) for seed in seeds]
    spread = intervals.student_interval([row["accuracy"] for row in rows])
    whole = _scores(items, ks)
    return {
        "task": task.name,
        "task_version": task.version,
        **{name: whole[name] for name in ("n", "correct", "accuracy", "ci95", "reward")},
        "counts": _counts(items),
        "num_problems": len({item["index"] for item in items}),
        "pass_at_k": whole["pass_at_k"],
        "by_seed": [
            {"seed": seed, **row, "fewshot": list(fewshot[i]) if fewshot else []}
            for i, (seed, row) in enumerate(zip(seeds, rows, strict=True))
        ],
        "over_seeds": None
        if spread is None
        else {
            "accuracy": sum(row["accuracy"] for row in rows) / len(rows),
            "ci95": [max(0.0, spread[0]), min(1.0, spread[1])],
        },
    }


def _scores(items: Sequence[Answer], ks: Iterable[int]) -> dict[str, Any]:
    right, n = sum(item["correct"] for item in items), len(items)
    groups: dict[int, dict[int, list[bool]]] = {}
    for item in items:
        groups.setdefault(item["index"], {}).setdefault(item["seed"], []).append(item["correct"])
    by_problem = [list(seeds.values()) for seeds in groups.values()]
    shares = [_mean([sum(answers) / len(answers) for answers in seeds]) for seeds in by_problem]
    ci95 = intervals.wilson(right, n) if len(by_problem) == n else intervals.clustered_wilson(shares, n)
    return {
        "n": n,
        "correct": right,
        "accuracy": right / max(1, n),
        "ci95": list(ci95),
        "reward": sum(item["reward"] for item in items) / max(1, n),
        "pass_at_k": {str(k): _pass_at_k(by_problem, k, n) for k in ks},
    }


def _pass_at_k(by_problem: Sequence[Sequence[Sequence[bool]]], k: int, num_answers: int) -> dict[str, Any]:
    """Mean over problems of each one's unbiased estimate (its mean over seeds), with its interval."""
    values = [_mean([intervals.pass_at_k(len(a), sum(a), k) for a in seeds]) for seeds in by_problem]
    return {"value": _mean(values), "ci95": list(intervals.clustered_wilson(values, num_answers))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _counts(items: Sequence[Answer]) -> dict[str, dict[str, int | float]]:
    """Finer counts (Sudoku cells), in the order in which they first occur."""
    counts: dict[str, dict[str, int | float]] = {}
    for name in dict.fromkeys(name for item in items for name in item.get("counts", {})):
        pairs = [item["counts"][name] for item in items if name in item["counts"]]
        hits, of = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        counts[name] = {"right": hits, "of": of, "share": hits / max(1, of)}
    return counts
