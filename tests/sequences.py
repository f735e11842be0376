"""Finished completions and made-up log-probabilities, for tests of objectives that draw their own views."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from egspo.types import Rewards, Scores, Steps, Trajectory, Views

MASK = 99
DOUBLE = torch.float64
LENGTH = 4


def make_trajectory(seeds=(11, 12, 13, 14), padding: int = 1) -> Trajectory:
    """Two groups of two. Their texts end after 4 (nowhere), 2, 3 and 1 of 4 tokens; prompts of 3 and 2
    tokens, padded to ``3 + padding``."""
    width, batch, ends = 3 + padding, len(seeds), (4, 2, 3, 1)
    prompt_mask = torch.tensor([[place >= width - n for place in range(width)] for n in (3, 3, 2, 2)])
    zeros = torch.zeros(batch, LENGTH, dtype=DOUBLE)
    return Trajectory(
        prompt_ids=torch.arange(50, 50 + width).expand(batch, -1) * prompt_mask,
        prompt_mask=prompt_mask,
        final=torch.arange(1, 1 + batch * LENGTH).view(batch, LENGTH),
        reveal_step=torch.arange(LENGTH).expand(batch, -1).clone(),
        reveal_order=torch.zeros(batch, LENGTH, dtype=torch.long),
        token_logp=zeros,
        position_logp=zeros,
        entropy=zeros,
        score_norm=zeros,
        one_step=None,
        completion_mask=torch.tensor([[place < end for place in range(LENGTH)] for end in ends]),
        last_step=torch.tensor([end - 1 for end in ends]),
        steps_taken=torch.full((batch,), LENGTH),
        seeds=torch.tensor(seeds),
        mask_token_id=MASK,
        block_length=LENGTH,
        draws_positions=False,
    )


def make_rewards(*final: float, group: int = 2) -> Rewards:
    return Rewards(torch.tensor(final, dtype=DOUBLE), {}, group, LENGTH)


def draw_views(objective, trajectory: Trajectory, rewards: Rewards, iteration: int = 0) -> Views:
    """What the trainer asks for, in its order."""
    advantages = objective.advantages(rewards)
    steps: Steps = objective.select(trajectory, advantages)
    return objective.views(trajectory, steps, advantages, iteration)


def normalised(objective, views: Views) -> Views:
    """Weights over the denominator, as the trainer leaves them on one rank."""
    return replace(views, weight=views.weight / objective.denominator(views))


def random_logp(views: Views, seed: int, spread: float = 0.5) -> Tensor:
    """Log-probabilities around -2, 0 where nothing is scored."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(views.scored.shape, generator=generator, dtype=DOUBLE)
    return (-2 + spread * noise) * views.scored


def scores_of(logp: Tensor) -> Scores:
    return Scores(logp, torch.zeros(logp.shape[:2], dtype=DOUBLE))


def literal_token_loss(
    logp: Tensor, old: Tensor, ref: Tensor, advantage: float, epsilon: float, beta: float
) -> Tensor:
    """``-min(rho A, clip(rho) A) + beta k3`` of one token."""
    rho = torch.exp(logp - old)
    bounded = torch.clamp(rho, 1 - epsilon, 1 + epsilon)
    gap = ref - logp
    return -torch.minimum(rho * advantage, bounded * advantage) + beta * (torch.exp(gap) - gap - 1)


def assert_same_loss(objective, views: Views, scores: Tensor, ref: Tensor | None, literal) -> None:
    """An objective's loss and gradient against ``literal(logp)``, to 1e-10."""
    ours, theirs = (scores.clone().requires_grad_() for _ in range(2))
    reference = None if ref is None else scores_of(ref)
    loss = objective.loss(scores_of(ours), reference, views).loss
    expected = literal(theirs)
    assert math.isclose(float(loss.detach()), float(expected.detach()), rel_tol=0, abs_tol=1e-10)
    (left,), (right,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(left * views.scored, right * views.scored, rtol=0, atol=1e-10)
    assert torch.count_nonzero(left)
