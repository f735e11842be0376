"""On-policy, SURE's expected step is the gradient of the log pass rate, as far as G draws can tell it.

Completions of one token, where the bound that is trained on is the likelihood itself, and every group of G of
them: docs/objectives/sure.md states what is proven here.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import sure
from egspo.types import Rewards
from mdp import END, MASK, A, World, flat_gradient, tabular_policy, transformer_policy

SUCCESSES = (A, END)
POLICIES = {"table": lambda: tabular_policy(1, 4, 3), "transformer": lambda: transformer_policy(5)}


def make_world(policy: str) -> World:
    sampler = SamplerConfig(max_completion_length=1, diffusion_steps=1, block_length=1, early_stop=False)
    return World(POLICIES[policy](), sampler)


def pass_rate(world: World) -> torch.Tensor:
    """J, with its graph."""
    logp = world.logits((MASK,))[0].log_softmax(-1)
    return sum(logp[token].exp() for token in SUCCESSES)


def expected_step(world: World, group: int) -> torch.Tensor:
    """Expectation over all groups of minus the gradient of the loss."""
    objective = sure.Objective(sure.Config(name="sure", num_replayed=0))
    chance = world.probabilities()
    members = torch.tensor(list(itertools.product(range(len(chance)), repeat=group))).flatten()
    weight = chance[members].view(-1, group).prod(1).repeat_interleave(group) / group
    trajectory = world.trajectory()[members]
    final = torch.isin(trajectory.final[:, 0], torch.tensor(SUCCESSES)).double()
    advantages = objective.advantages(Rewards(final, {}, group, trajectory.num_steps))
    steps = objective.select(trajectory, advantages)
    views = objective.views(trajectory, steps, advantages, 0)
    views = replace(views, weight=views.weight * weight[:, None])
    return -flat_gradient(
        objective.loss(score(world.policy, views, world.sampler), None, views).loss, world.policy
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_the_expected_step_is_that_of_the_log_pass_rate(policy: str, group: int):
    world = make_world(policy)
    rate = pass_rate(world)
    assert 0.1 < float(rate.detach()) < 0.9
    step = expected_step(world, group)
    assert step.norm() > 0.02
    seen = 1 - (1 - rate.detach()) ** group
    torch.testing.assert_close(step, seen * flat_gradient(rate.log(), world.policy), rtol=0, atol=1e-10)
    # The first G terms of the expansion of log J: the gradients of pass@k, the k-th with weight 1/k.
    terms = sum((1 - (1 - pass_rate(world)) ** k) / k for k in range(1, group + 1))
    torch.testing.assert_close(step, flat_gradient(terms, world.policy), rtol=0, atol=1e-10)
