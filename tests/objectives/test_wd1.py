"""wd1: its weights, its formula as a loop over groups, its cost."""

import math

import pytest
import torch

import runs
from egspo.config import SamplerConfig, TrainConfig
from egspo.objectives import diffu_grpo, wd1
from sequences import (
    DOUBLE,
    assert_same_loss,
    draw_views,
    make_rewards,
    make_trajectory,
    normalised,
    random_logp,
    scores_of,
)

REWARDS = [1.0, 0.0, 0.5, 0.9]
TOKENS = [4, 2, 3, 1]


def make_objective(**settings):
    return wd1.Objective(wd1.Config(name="wd1", **settings))


def test_defaults_are_the_published_ones():
    config = wd1.Config(name="wd1")
    assert (config.psi, config.p_mask_prompt, config.beta) == (1.0, 0.15, 0.0)
    assert (config.baseline, config.scale) == ("same_step", "none")
    assert not wd1.Objective.wants_old_scores


def test_the_canvases_are_those_of_diffu_grpo():
    rewards = make_rewards(*REWARDS)
    other = diffu_grpo.Objective(diffu_grpo.Config(name="diffu_grpo"))
    for iteration in range(3):
        ours = draw_views(make_objective(), make_trajectory(), rewards, iteration)
        theirs = draw_views(other, make_trajectory(), rewards, iteration)
        assert torch.equal(ours.inputs, theirs.inputs) and torch.equal(ours.scored, theirs.scored)


@pytest.mark.parametrize("psi", [0.5, 1.0, 3.0])
def test_formula_as_a_loop_over_groups(psi):
    objective = make_objective(psi=psi)
    views = normalised(objective, draw_views(objective, make_trajectory(), make_rewards(*REWARDS)))
    logp = random_logp(views, 0)

    def literal(logp):
        total = 0.0
        for start in (0, 2):
            group = range(start, start + 2)
            mean = sum(REWARDS[j] for j in group) / 2
            advantage = {i: REWARDS[i] - mean for i in group}
            up = {i: math.exp(psi * advantage[i]) for i in group}
            down = {i: math.exp(-psi * advantage[i]) for i in group}
            for i in group:
                likelihood = sum(logp[i, 0, k] for k in range(TOKENS[i]))
                total = total - up[i] / sum(up.values()) * likelihood
                total = total + down[i] / sum(down.values()) * likelihood
        return total / 2

    assert_same_loss(objective, views, logp, None, literal)


def test_a_group_of_equal_rewards_weighs_nothing_and_an_average_one_neither():
    objective = make_objective()
    weights = objective.advantages(make_rewards(*[0.1] * 3, 0.0, 0.5, 1.0, group=3))[:, 0]
    assert torch.count_nonzero(weights[:3]) == 0
    # softmax(-1/2, 0, 1/2) against its mirror image: the one in the middle cancels.
    assert weights[4] == 0
    size = 3 * (math.exp(0.5) - math.exp(-0.5)) / (math.exp(0.5) + 1 + math.exp(-0.5))
    assert weights[3:].tolist() == pytest.approx([-size, 0, size])


def test_nearly_equal_rewards_make_a_policy_gradient():
    # G (w+ - w-) = 2 psi A + O(psi^3).
    rewards = torch.rand(12, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    objective = make_objective(psi=1e-3)
    advantages = (rewards.view(2, 6) - rewards.view(2, 6).mean(1, keepdim=True)).flatten()
    weights = objective.advantages(make_rewards(*rewards.tolist(), group=6))[:, 0]
    torch.testing.assert_close(weights, 2e-3 * advantages, rtol=1e-5, atol=0)


@pytest.mark.parametrize("baseline", ["none", "same_step", "batch"])
def test_weights_do_not_depend_on_a_baseline_that_a_group_shares(baseline):
    rewards = make_rewards(*REWARDS)
    expected = make_objective().advantages(rewards)
    torch.testing.assert_close(make_objective(baseline=baseline).advantages(rewards), expected)


def test_metrics_are_log_probabilities_a_token_of_what_is_raised_and_lowered():
    objective = make_objective()
    views = draw_views(objective, make_trajectory(), make_rewards(*REWARDS))
    logp = random_logp(views, 0)
    metrics = objective.loss(scores_of(logp), None, views).metrics
    # Samples 0 and 3 (4 tokens and 1) are raised, 1 and 2 (2 and 3) lowered.
    assert metrics["loss/logp_raised"] == (pytest.approx(float(logp[[0, 3]].sum())), 5.0)
    assert metrics["loss/logp_lowered"] == (pytest.approx(float(logp[[1, 2]].sum())), 5.0)


def test_a_reference_is_refused(tmp_path):
    lengths = {"max_completion_length": 8, "diffusion_steps": 8, "block_length": 8}
    found = make_objective(beta=0.1).problems(SamplerConfig(**lengths), TrainConfig())
    assert found == ["objective.beta: 0.1, but wd1 has no reference policy; use 0"]
    with pytest.raises(ValueError, match=r"objective.beta: 0.1"):
        runs.rl_config(tmp_path, "objective.name=wd1", "objective.beta=0.1")


@pytest.mark.parametrize("settings", [{"psi": 0.0}, {"psi": -1.0}, {"p_mask_prompt": 1.5}, {"epsilon": 0.2}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        wd1.Config(name="wd1", **settings)
