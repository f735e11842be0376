"""SURE on its own rollouts follows the log of the pass rate: all groups of completions of one token.

There the lower bound is the likelihood and every length is 1, which is what docs/objectives/sure.md asks for.
The package weighs and scores; the chance of a group, the pass rate and its gradient come from ``mdp.World``.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import sure
from egspo.types import Rewards
from mdp import END, A, B, World, flat_gradient, tabular_policy, transformer_policy

POLICIES = {"table": lambda: tabular_policy(length=1), "transformer": transformer_policy}
GROUPS = [1, 2, 3]
every_case = pytest.mark.parametrize(
    ("policy", "successes"), [("table", (B,)), ("table", (A, END)), ("transformer", (B, END))]
)


def make_world(policy: str) -> World:
    sampler = SamplerConfig(max_completion_length=1, diffusion_steps=1, block_length=1, early_stop=False)
    return World(POLICIES[policy](), sampler)


def expected_step(world: World, successes: tuple[int, ...], group: int) -> Tensor:
    """Minus the gradient of the loss, in expectation over all groups of independent completions."""
    chance = world.probabilities()
    members = torch.tensor(list(itertools.product(range(len(chance)), repeat=group)))
    trajectory = world.trajectory()[members.flatten()]
    earned = torch.isin(trajectory.final[:, 0], torch.tensor(successes)).double()
    objective = sure.Objective(sure.Config(name="sure", num_replayed=0))
    advantages = objective.advantages(Rewards(earned, {}, group, 1))
    views = objective.views(trajectory, objective.select(trajectory, advantages), advantages, 0)
    # Each group is an update of its own: its denominator is its size, its share its chance.
    share = chance[members].prod(1).repeat_interleave(group) / group
    views = replace(views, weight=views.weight * share[:, None])
    return -flat_gradient(
        objective.loss(score(world.policy, views, world.sampler), None, views).loss, world.policy
    )


def pass_rate(world: World, successes: tuple[int, ...]) -> Tensor:
    """J, with its graph."""
    return sum(sum(a.logp for a in path.actions).exp() for path in world.paths if path.final[0] in successes)


def assert_equal(found: Tensor, truth: Tensor) -> None:
    assert truth.norm() > 0.02
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
@every_case
def test_a_group_follows_the_log_of_the_pass_rate_as_often_as_it_has_a_success(policy, successes, group):
    # The mean score of successes is grad log J, whatever their number; none has no mean.
    world = make_world(policy)
    rate = pass_rate(world, successes)
    assert 0.05 < float(rate.detach()) < 0.95
    solved = 1 - (1 - float(rate.detach())) ** group
    assert_equal(expected_step(world, successes, group), solved * flat_gradient(rate.log(), world.policy))


@pytest.mark.parametrize("group", GROUPS)
@every_case
def test_a_group_follows_the_first_terms_of_the_expansion_of_the_logarithm(policy, successes, group):
    # log J = -sum_k (1 - J)^k / k; pass@k = 1 - (1 - J)^k.
    world = make_world(policy)
    rate = pass_rate(world, successes)
    terms = sum((1 - (1 - rate) ** k) / k for k in range(1, group + 1))
    assert_equal(expected_step(world, successes, group), flat_gradient(terms, world.policy))
