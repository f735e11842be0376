"""Decode final canvases and one-step completions and score them with a task or with reward functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from egspo.external import RewardFunc, call_reward
from egspo.policy import Policy
from egspo.tasks.base import Task
from egspo.types import Grade, Prompt, Rewards, Steps, Trajectory, join_tensors


@dataclass(frozen=True)
class Scored:
    """Rewards of a batch with what a transcript shows of them."""

    rewards: Rewards
    completions: list[str]
    grades: list[Grade | None]
    one_step_texts: list[list[str]]
    """Texts of each sample's candidate states, in the order of ``rewards.candidates``."""


class TaskScorer:
    """Rewards by a task's grader: final and step rewards may weigh its parts differently."""

    def __init__(self, task: Task):
        self.task = task
        self._final_weights = task.reward_weights
        self._step_weights = task.step_reward_weights
        self._recent: dict[tuple[int, str], Grade] = {}
        self._alive: Sequence[Prompt] = ()
        self.part_names = tuple(task.parts)
        self.by_parts = task.independent

    def final(self, prompts: Sequence[Prompt], texts: Sequence[str]):
        """Rewards, parts (name -> one value a text, None where it does not apply) and grades."""
        grades = self._grade(prompts, texts)
        parts = {name: [grade.parts.get(name) for grade in grades] for name in self.part_names}
        return [_weigh(grade, self._final_weights) for grade in grades], parts, grades

    def steps(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [_weigh(grade, self._step_weights) for grade in self._grade(prompts, texts)]

    def _grade(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Grade]:
        """Equal texts for one problem are graded once, also over two calls: the one-step completion of a late
        state is often the finished text."""
        keys = [(id(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
        fields = {id(prompt): prompt.fields for prompt in prompts}
        different = [key for key in dict.fromkeys(keys) if key not in self._recent]
        grades = self.task.grade_all([text for _, text in different], [fields[key] for key, _ in different])
        known = self._recent | dict(zip(different, grades, strict=True))
        self._recent = {key: known[key] for key in keys}
        self._alive = prompts  # so that no other comes by the same id
        return [known[key] for key in keys]


class FunctionScorer:
    """Rewards by the user's functions, weighted and summed, for final and one-step completions alike.

    A function is called in the main thread with the whole batch: it may compare completions.
    """

    by_parts = False

    def __init__(self, functions: Sequence[RewardFunc], weights: Sequence[float] | None = None):
        weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(weights) != len(functions):
            raise ValueError(
                f"reward_weights: got {len(weights)} for {len(functions)} reward_funcs; give one each"
            )
        self._functions = list(functions)
        self._weights = weights
        self.part_names = tuple(_name(function) for function in functions)
        if len(set(self.part_names)) < len(functions):
            raise ValueError(
                f"reward_funcs: two functions share a name ({', '.join(self.part_names)}); rename one"
            )

    def final(self, prompts: Sequence[Prompt], texts: Sequence[str]):
        values = [self._call(function, prompts, texts) for function in self._functions]
        parts = dict(zip(self.part_names, values, strict=True))
        totals = [
            sum((w * v for w, v in zip(self._weights, row, strict=True) if v is not None), 0.0)
            for row in zip(*values, strict=True)
        ]
        return totals, parts, [None] * len(texts)

    def steps(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return self.final(prompts, texts)[0]

    def _call(
        self, function: RewardFunc, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[float | None]:
        name, fields = f"reward_funcs: {_name(function)}", [prompt.fields for prompt in prompts]
        return call_reward(function, name, [prompt.messages for prompt in prompts], texts, fields)


Scorer = TaskScorer | FunctionScorer


class Scoring:
    """Scores the parts of a rollout in a thread while later parts are denoised.

    Grading is quick, or waits for processes of its own (sandbox, mathematics): either way it hides there.
    ``candidates_of`` maps a trajectory to the states whose one-step completions are to be scored.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: Policy,
        prompts: Sequence[Prompt],
        candidates_of: Callable[[Trajectory], Steps | None],
        num_generations: int,
    ):
        self._scorer, self._policy, self._prompts = scorer, policy, prompts
        self._candidates_of, self._num_generations = candidates_of, num_generations
        self._pool = ThreadPoolExecutor(1, "rewards")
        self._parts: list[Future[Scored]] = []

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, start: int, part: Trajectory) -> None:
        """The completions from row ``start`` on are finished."""
        if self._scorer.by_parts:
            prompts = self._prompts[start : start + len(part.final)]
            self._parts.append(self._pool.submit(self._score, part, prompts))

    def result(self, trajectory: Trajectory) -> Scored:
        """What the whole trajectory earned, in the order of its rows."""
        if not self._scorer.by_parts:
            return self._score(trajectory, self._prompts)
        return _join([part.result() for part in self._parts])

    def _score(self, part: Trajectory, prompts: Sequence[Prompt]) -> Scored:
        candidates = self._candidates_of(part)
        return score_batch(self._scorer, self._policy, part, prompts, candidates, self._num_generations)


def _join(parts: Sequence[Scored]) -> Scored:
    rewards = join_tensors([part.rewards for part in parts])
    return Scored(
        rewards,
        [text for part in parts for text in part.completions],
        [grade for part in parts for grade in part.grades],
        [texts for part in parts for texts in part.one_step_texts],
    )


def score_batch(
    scorer: Scorer,
    policy: Policy,
    trajectory: Trajectory,
    prompts: Sequence[Prompt],
    candidates: Steps | None,
    num_generations: int,
) -> Scored:
    """Rewards of finished canvases and of the one-step completions of the candidate states."""
    texts = policy.decode(trajectory.final)
    totals, parts, grades = scorer.final(prompts, texts)
    values, one_step = None, [[] for _ in texts]
    if candidates is not None:
        values, one_step = _score_steps(scorer, policy, trajectory, prompts, candidates)
    device = trajectory.final.device
    rewards = Rewards(
        final=torch.tensor(totals, dtype=torch.float64, device=device),
        parts={name: _column(values, device) for name, values in parts.items()},
        num_generations=num_generations,
        num_steps=trajectory.num_steps,
        candidates=candidates,
        step_values=values,
        score_norm=trajectory.score_norm * trajectory.informative,
        seeds=trajectory.seeds,
    )
    return Scored(rewards, texts, grades, one_step)


def _score_steps(scorer, policy, trajectory: Trajectory, prompts, candidates: Steps):
    """The value of each candidate state, the mean over its completions, and the first of these as a text."""
    rows = torch.arange(len(candidates.index), device=candidates.index.device)[:, None]
    canvases = trajectory.one_step[rows, candidates.index]
    chosen, each = canvases.shape[1], canvases[0, 0].numel() // canvases.shape[-1]
    texts = policy.decode(canvases.view(-1, canvases.shape[-1]))
    repeated = [prompt for prompt in prompts for _ in range(chosen * each)]
    values = torch.tensor(scorer.steps(repeated, texts), dtype=torch.float64, device=canvases.device)
    values, first = values.view(-1, chosen, each).mean(-1), texts[::each]
    return values * candidates.mask, [first[i : i + chosen] for i in range(0, len(first), chosen)]


def _column(values: Sequence[float | None], device: torch.device) -> torch.Tensor:
    known = [math.nan if value is None else value for value in values]
    return torch.tensor(known, dtype=torch.float64, device=device)


def _weigh(grade: Grade, weights: Mapping[str, float]) -> float:
    return sum((weights[name] * value for name, value in grade.parts.items()), 0.0)


def _name(function: RewardFunc) -> str:
    return getattr(function, "__name__", type(function).__name__)
