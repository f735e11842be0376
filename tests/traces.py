"""Objectives on recorded denoising, against loops that follow the formulas: one sample, one token at a time.

A rollout of an old policy, the policy after some updates, and a reference, all tiny and in float64. What the
loops take of a trajectory is its tokens and the step that revealed each; canvases are rebuilt from these.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.policy import Policy
from egspo.rollout import pad_prompts, rollout
from egspo.types import LossOutput, Proxy, Rewards, Trajectory, Views
from literal import log_probabilities, logits_at

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54]]
GROUP = 3


@dataclass(frozen=True)
class Case:
    """Two groups of three completions."""

    old: Policy
    policy: Policy
    reference: Policy
    sampler: SamplerConfig
    trajectory: Trajectory

    def prompt(self, i: int) -> list[int]:
        """Without padding."""
        ids = self.trajectory.prompt_ids[i][self.trajectory.prompt_mask[i]]
        return ids.tolist()

    def reward(self, canvas: list[int]) -> float:
        """An arbitrary number for a text up to its end token."""
        text = []
        for token in canvas:
            text.append(token)
            if token in self.old.end_token_ids:
                break
        return 0.5 + math.sin(sum((3 * v + 1) * (k + 1) for k, v in enumerate(text)))

    def length(self, i: int) -> int:
        """Tokens up to the end token, which counts."""
        tokens = self.trajectory.final[i].tolist()
        ends = [k for k, token in enumerate(tokens) if token in self.old.end_token_ids]
        return ends[0] + 1 if ends else len(tokens)

    def last_step(self, i: int) -> int:
        return max(int(t) for t in self.trajectory.reveal_step[i, : self.length(i)])

    def canvas(self, i: int, step: int) -> list[int]:
        """The canvas before a step."""
        tokens, steps = self.trajectory.final[i].tolist(), self.trajectory.reveal_step[i].tolist()
        return [
            self.old.mask_token_id if at >= step else token for token, at in zip(tokens, steps, strict=True)
        ]

    def logp(
        self, who: Policy, i: int, step: int, place: int, temperature: float, prompt=None, token=None
    ) -> Tensor:
        """Log-probability of the completion's token, or another, at a place on the canvas before a step."""
        canvas, prompt = self.canvas(i, step), self.prompt(i) if prompt is None else prompt
        token = int(self.trajectory.final[i, place]) if token is None else token
        logits, allowed = logits_at(who.model, prompt, canvas, self.sampler, self.old.mask_token_id)
        return log_probabilities(logits[place], allowed, temperature)[token]

    def rewards(self, candidates=None) -> Rewards:
        """Of the completions, and of the one-step completions of candidate states."""
        final = [self.reward(canvas) for canvas in self.trajectory.final.tolist()]
        values = None
        if candidates is not None:
            one_step = self.trajectory.one_step.tolist()
            values = [
                [self.reward(one_step[i][t]) for t in row] for i, row in enumerate(candidates.index.tolist())
            ]
            values = torch.tensor(values, dtype=torch.float64) * candidates.mask
        final = torch.tensor(final, dtype=torch.float64)
        norm = self.trajectory.score_norm * self.trajectory.informative
        seeds = self.trajectory.seeds
        return Rewards(final, {}, GROUP, self.trajectory.num_steps, candidates, values, norm, seeds)

    def outcome_advantages(self, scale: bool) -> list[float]:
        """Reward less the group's mean, over its standard deviation if asked."""
        earned = [self.reward(canvas) for canvas in self.trajectory.final.tolist()]
        found = []
        for i, own in enumerate(earned):
            group = earned[i // GROUP * GROUP : i // GROUP * GROUP + GROUP]
            mean = sum(group) / GROUP
            spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (GROUP - 1)) + 1e-4
            found.append((own - mean) / (spread if scale else 1.0))
        return found


def make_case(tiny_policy, proxy: Proxy | None = None, **settings) -> Case:
    """Canvases of 8 in two blocks, 6 steps (of 2, 1 and 1 tokens a block), unless told otherwise."""
    plain = {
        "max_completion_length": 8,
        "diffusion_steps": 6,
        "block_length": 4,
        "temperature": 0.8,
        "early_stop": False,
    }
    sampler = SamplerConfig(**(plain | settings))
    old, policy, reference = (tiny_policy(0, torch.float64) for _ in range(3))
    # A fifth of the vocabulary ends a text, so that some do, at different places.
    for who in (old, policy, reference):
        who.end_token_ids = tuple(range(20, 40))
    for who, seed in ((policy, 1), (reference, 2)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in who.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.03 * noise)
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    seeds = torch.arange(len(prompts)) + 5
    trajectory = rollout(old, *pad_prompts(old, prompts), seeds, sampler, proxy=proxy or Proxy())
    case = Case(old, policy, reference, sampler, trajectory)
    lengths = {case.length(i) for i in range(len(prompts))}
    assert len(lengths) > 2 and min(lengths) < sampler.max_completion_length
    return case


def views_of(objective, case: Case, iteration: int = 0) -> Views:
    """As the trainer makes them for one of several updates, weights over the denominator."""
    trajectory = case.trajectory
    advantages = objective.advantages(case.rewards(objective.candidates(trajectory)))
    views = objective.views(trajectory, objective.select(trajectory, advantages), advantages, iteration)
    if objective.wants_old_scores:
        assert views.old_token_logp is None
        with torch.no_grad():
            old = score(case.old, views, scoring(objective, case)).token_logp
        views = replace(views, old_token_logp=old, old_position_logp=old[:, :, 0] * 0)
    return replace(views, weight=views.weight / objective.denominator(views))


def loss_of(objective, case: Case, views: Views) -> LossOutput:
    sampler = scoring(objective, case)
    with torch.no_grad():
        reference = score(case.reference, views, sampler) if objective.config.beta else None
    return objective.loss(score(case.policy, views, sampler), reference, views)


def scoring(objective, case: Case) -> SamplerConfig:
    return case.sampler if objective.tempered else case.sampler.model_copy(update={"temperature": 1.0})


def surrogate(log_ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """``-min(rho A, clip(rho, 1 - low, 1 + high) A)``."""
    ratio = log_ratio.exp()
    bounded = min(max(float(ratio.detach()), 1 - low), 1 + high)
    if bounded * advantage < float(ratio.detach()) * advantage:
        return torch.tensor(-bounded * advantage, dtype=torch.float64)
    return -ratio * advantage


def kl(kind: str, logp: Tensor, other: Tensor) -> Tensor:
    gap = other.detach() - logp
    return {"k1": -gap, "k2": gap**2 / 2, "k3": gap.exp() - 1 - gap}[kind]
