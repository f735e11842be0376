"""What an iteration logs. Every metric is a sum and a count, so that means over ranks are exact."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from egspo.ops.advantages import equal_groups
from egspo.ops.importance import effective_sample_size
from egspo.rewards import Scored
from egspo.types import Prompt, Rewards, Steps, Trajectory

TIMES = ("time/rollout", "time/reward", "time/update")
ALWAYS = (
    "loss/policy",
    "loss/clip_fraction",
    "loss/kl",
    "optim/grad_norm",
    "optim/learning_rate",
    "update/canvases",
    "steps/skipped_samples_fraction",
    "rollout/importance_mean",
    "rollout/importance_max",
    "rollout/effective_sample_size",
    *TIMES,
)
LOW_SAMPLE_SIZE = 0.9
"""Effective share of the samples below which a cached sampler is too far from the policy."""


class Meter:
    """Sums and counts by key. A count of 0 makes a total instead of a mean. Peaks beside them."""

    def __init__(self):
        self._sums: dict[str, list[float]] = {}
        self._peaks: dict[str, float] = {}

    def add(self, key: str, total: int | float, count: int | float) -> None:
        entry = self._sums.setdefault(key, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    def peak(self, key: str, value: float) -> None:
        self._peaks[key] = max(value, self._peaks.get(key, value))

    def merge(self, metrics: Mapping[str, tuple[float, float]]) -> None:
        for key, (total, count) in metrics.items():
            self.add(key, total, count)

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Seconds of a phase; what comes later of the same phase is added to it."""
        started = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.add(key, time.monotonic() - started, 0 if key in self._sums else 1)

    def over_ranks(self, accelerator: Accelerator) -> "Meter":
        if accelerator.num_processes == 1:
            return self
        joined = Meter()
        for sums, peaks in gather_object([(self._sums, self._peaks)]):
            joined.merge({key: (total, count) for key, (total, count) in sums.items()})
            for key, value in peaks.items():
                joined.peak(key, value)
        return joined

    def result(self, keys: Sequence[str]) -> dict[str, float | None]:
        """Means (or totals) by key; None for a key of which nothing was seen in this iteration."""
        values: dict[str, float | None] = {key: None for key in (*ALWAYS, *keys)}
        values |= {key: total / count if count else total for key, (total, count) in self._sums.items()}
        values |= self._peaks
        square = values.pop("rollout/importance_square", None)
        if square is not None:
            mean = values["rollout/importance_mean"]
            values["rollout/effective_sample_size"] = effective_sample_size(mean, square)
        spread = values.pop("reward/square") - values["reward/mean"] ** 2
        return values | {"reward/std": max(0.0, spread) ** 0.5}


def importance_metrics(meter: Meter, log_weight: torch.Tensor) -> None:
    """Weights of steps that were sampled from another distribution than the policy, before truncation."""
    if not len(log_weight):
        return
    weight = log_weight.double().exp()
    _mean(meter, "rollout/importance_mean", weight)
    _mean(meter, "rollout/importance_square", weight.square())
    meter.peak("rollout/importance_max", float(weight.max()))


def warnings(row: Mapping[str, Any]) -> Iterator[str]:
    """What to tell of an iteration: cached rollouts too far from the policy, and nothing to learn from."""
    share, step = row["rollout/effective_sample_size"], row["step"]
    if share is not None and share < LOW_SAMPLE_SIZE:
        yield (
            f"step {step}: cached rollouts are worth {share:.0%} of their samples; lower "
            "sampler.cache_refresh_steps"
        )
    if row.get("replay/completions") == 0 and step % 10 == 0:
        yield (
            f"step {step}: no completion has earned objective.min_reward yet, so that nothing is learned; "
            "lower it, or start from a better base"
        )


def batch_metrics(
    meter: Meter, trajectory: Trajectory, rewards: Rewards, steps: Steps, advantages: torch.Tensor
) -> None:
    """Metrics of one rank's rollout batch; docs/metrics.md defines each."""
    final = rewards.final
    _mean(meter, "reward/mean", final)
    _mean(meter, "reward/square", final.square())
    _mean(meter, "reward/zero_std_fraction", equal_groups(final, rewards.num_generations).double())
    for name, values in rewards.parts.items():
        applies = values[~values.isnan()]
        if len(applies):
            _mean(meter, f"reward/{name}", applies)
    if rewards.step_values is not None:
        _mean(meter, "reward/one_step", rewards.step_values[rewards.candidates.mask])
    chosen = trajectory.entropy.gather(1, steps.index)
    _mean(meter, "rollout/entropy_selected", chosen[steps.mask])
    _mean(meter, "rollout/entropy_all", trajectory.entropy[trajectory.informative])
    _mean(meter, "rollout/last_step", trajectory.last_step.double())
    _mean(meter, "rollout/steps_taken", trajectory.steps_taken.double())
    meter.add("rollout/tokens", float(trajectory.completion_mask.sum()), 0)
    _mean(meter, "rollout/completion_length", trajectory.completion_mask.sum(1).double())
    _mean(meter, "steps/selected_mean_index", steps.index[steps.mask].double())
    # An objective that judges whole completions selects no steps, and has one advantage for all of them.
    judged = advantages.gather(1, steps.index)[steps.mask] if steps.mask.any() else advantages[:, 0]
    _mean(meter, "steps/advantage_abs", judged.abs())


def transcripts(
    step: int,
    prompts: Sequence[Prompt],
    scored: Scored,
    trajectory: Trajectory,
    steps: Steps,
    advantages: torch.Tensor,
    num: int,
) -> list[dict[str, Any]]:
    """Records of ``num`` samples: what was asked, written, earned, and what was trained on."""
    size = scored.rewards.num_generations
    # Every group's first sample, then every group's second: neighbours answer the same prompt.
    spread = [row for first in range(size) for row in range(first, len(prompts), size)]
    return [_transcript(step, i, prompts[i], scored, trajectory, steps, advantages) for i in spread[:num]]


def _transcript(step, i, prompt: Prompt, scored: Scored, trajectory, steps, advantages) -> dict[str, Any]:
    grade, rewards = scored.grades[i], scored.rewards
    return {
        "step": step,
        "id": prompt.id,
        "prompt": prompt.messages[-1]["content"],
        "completion": scored.completions[i],
        "reward": float(rewards.final[i]),
        "parts": {name: float(v[i]) for name, v in rewards.parts.items() if not v[i].isnan()},
        "correct": None if grade is None else grade.correct,
        "reason": None if grade is None else grade.reason,
        "entropy": [round(h, 5) for h in trajectory.entropy[i].tolist()],
        "last_step": int(trajectory.last_step[i]),
        "selected": [
            _selected(i, t, scored, trajectory, advantages) for t in steps.index[i][steps.mask[i]].tolist()
        ],
    }


def _selected(
    i: int, t: int, scored: Scored, trajectory: Trajectory, advantages: torch.Tensor
) -> dict[str, Any]:
    record = {
        "step": t,
        "entropy": round(float(trajectory.entropy[i, t]), 5),
        "advantage": float(advantages[i, t]),
        "one_step": None,
        "step_reward": None,
    }
    rewards = scored.rewards
    if rewards.candidates is not None:
        at = ((rewards.candidates.index[i] == t) & rewards.candidates.mask[i]).nonzero()[0, 0]
        record |= {"one_step": scored.one_step_texts[i][at], "step_reward": float(rewards.step_values[i, at])}
    return record


def _mean(meter: Meter, key: str, values: torch.Tensor) -> None:
    meter.add(key, float(values.sum()), values.numel())
