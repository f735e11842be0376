"""JustGRPO: one token a step from left to right, against a loop over tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runs
from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import egspo, just_grpo
from egspo.types import Rewards
from mdp import World, flat_gradient, rewards, tabular_policy
from traces import kl, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-10}
LEFT_TO_RIGHT = {"remasking": "left_to_right", "diffusion_steps": 8}


def make_objective(**settings):
    return just_grpo.Objective(just_grpo.Config(name="just_grpo", **settings))


def literal_loss(case, config):
    """Token k on the canvas that shows those before it; over L and the number of trained completions."""
    advantages, total = case.outcome_advantages(config.scale == "std"), 0.0
    trained = sum(a != 0 for a in advantages)
    for i, advantage in enumerate(advantages):
        for place in range(case.length(i)):
            assert case.canvas(i, place)[:place] == case.trajectory.final[i, :place].tolist()
            assert set(case.canvas(i, place)[place:]) == {case.old.mask_token_id}
            new, old, reference = (
                case.logp(who, i, place, place, case.sampler.temperature)
                for who in (case.policy, case.old, case.reference)
            )
            total = total + surrogate(new - old.detach(), advantage, config.epsilon, config.epsilon_high)
            total = total + config.beta * kl(config.kl, new, reference)
    return total / case.sampler.max_completion_length / trained


@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 0.3, "epsilon": 0.02, "epsilon_high": 0.05}, {"beta": 0.1, "kl": "k2", "scale": "none"}],
)
def test_loss_and_gradient_are_those_of_the_loop(tiny_policy, settings):
    case, objective = make_case(tiny_policy, **LEFT_TO_RIGHT), make_objective(**settings)
    output = loss_of(objective, case, views_of(objective, case))
    expected = literal_loss(case, objective.config)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    found, wanted = (flat_gradient(value, case.policy) for value in (output.loss, expected))
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, **EXACT)
    assert set(output.metrics) == set(objective.metric_keys)


def test_completions_without_an_advantage_do_not_count(tiny_policy):
    case, objective = make_case(tiny_policy, **LEFT_TO_RIGHT), make_objective()
    trajectory = case.trajectory
    advantages = torch.ones_like(trajectory.entropy)
    advantages[3:] = 0.0
    steps = objective.select(trajectory, advantages)
    views = objective.views(trajectory, steps, advantages, 0)
    assert objective.denominator(views) == 3.0
    assert objective.active(views).any(1).tolist() == [True] * 3 + [False] * 3
    # With a KL term they do.
    assert make_objective(beta=0.1).denominator(views) == 6.0
    # Nothing at all to train on is no division by zero.
    none = objective.views(trajectory, steps, advantages * 0, 0)
    assert 0 < objective.denominator(none) < 1e-6


def test_every_token_up_to_the_end_is_scored_once(tiny_policy):
    case, objective = make_case(tiny_policy, **LEFT_TO_RIGHT), make_objective()
    views = views_of(objective, case)
    assert torch.equal(views.scored.sum(1), case.trajectory.completion_mask.long())
    assert int(views.scored.sum(-1).max()) == 1
    assert objective.num_views(case.sampler) == 8


def test_it_is_egspo_of_all_steps(tiny_policy):
    # One token a step: EGSPO over all steps with the group's mean, over L; all completions are trained on.
    case, objective = make_case(tiny_policy, **LEFT_TO_RIGHT), make_objective(scale="none")
    settings = {"selection": "all", "step_advantage_weight": 0.0, "baseline": "same_step"}
    steps = egspo.Objective(egspo.Config(name="egspo", epsilon_high=0.2, **settings))
    found, wanted = (loss_of(o, case, views_of(o, case)).loss for o in (objective, steps))
    torch.testing.assert_close(found, wanted / 8, **EXACT)


def test_its_expectation_is_the_gradient_of_the_return():
    # Up to the constant 1 / L, without a baseline; over all trajectories of a small problem, ends included.
    sampler = SamplerConfig(
        max_completion_length=3,
        diffusion_steps=3,
        block_length=3,
        remasking="left_to_right",
        early_stop=False,
    )
    world = World(tabular_policy(3, 4), sampler)
    objective = make_objective(scale="none", baseline="none")
    trajectory = world.trajectory()
    advantages = objective.advantages(Rewards(rewards(world), {}, 1, 3))
    views = objective.views(trajectory, objective.select(trajectory, advantages), advantages, 0)
    views = replace(views, weight=views.weight * world.probabilities()[:, None])
    loss = objective.loss(score(world.policy, views, sampler), None, views).loss
    truth = world.gradient(rewards(world))
    assert truth.norm() > 0.02
    torch.testing.assert_close(-3 * flat_gradient(loss, world.policy), truth, **EXACT)


def test_forward_passes_of_a_run(tmp_path):
    settings = ["objective.name=just_grpo", "sampler.remasking=left_to_right"]
    (row,) = runs.train(tmp_path, "train.max_steps=1", *settings)
    trained = round(16 * (1 - row["steps/skipped_samples_fraction"]))
    # Two tokens a completion, less those of texts that end with their first.
    assert 0 < trained * 1.5 <= row["update/canvases"] <= trained * 2
    assert row["loss/ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("sampler", "train", "messages"),
    [
        ({}, {}, []),
        (
            {"remasking": "low_confidence"},
            {},
            ["sampler.remasking: 'low_confidence', but just_grpo is defined with 'left_to_right'; set"],
        ),
        (
            {"diffusion_steps": 4},
            {},
            ["sampler.diffusion_steps: 4, but just_grpo is defined with one token a step; set sampler.dif"],
        ),
        ({}, {"update_split": "steps", "updates_per_rollout": 3}, ["3 does not divide the 8 steps"]),
    ],
)
def test_problems(sampler, train, messages):
    plain = {"max_completion_length": 8, "diffusion_steps": 8, "block_length": 4}
    sampler = SamplerConfig(**(plain | {"remasking": "left_to_right"} | sampler))
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    found = make_objective().problems(sampler, train)
    assert len(found) == len(messages)
    assert all(message in line for message, line in zip(messages, found, strict=True))


def test_bad_settings():
    for settings in ({"epsilon": 1.0}, {"kl": "exact"}, {"scale": "mean"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_objective(**settings)
