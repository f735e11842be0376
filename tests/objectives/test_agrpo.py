"""AGRPO: steps sampled by entropy and weighed by its inverse; over all draws, the loss of all steps."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runs
from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import agrpo
from egspo.ops import noise, selection
from egspo.types import Rewards
from mdp import World, flat_gradient, rewards, tabular_policy
from traces import kl, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-10}


def make_objective(**settings):
    return agrpo.Objective(agrpo.Config(name="agrpo", **settings))


def drawn_steps(case, i, config):
    """(step, probability) of each draw: a stratum each, the first step whose cumulative share exceeds it."""
    last = case.last_step(i)
    entropy = [float(h) + 1e-8 for h in case.trajectory.entropy[i, : last + 1]]
    share = config.uniform_share
    chance = [(1 - share) * h / sum(entropy) + share / (last + 1) for h in entropy]
    draws = config.num_sampled_steps
    points = noise.uniform(case.trajectory.seeds[i : i + 1], noise.SELECTION, 0, draws)[0].tolist()
    for k, point in enumerate(points):
        cumulative = list(itertools.accumulate(chance))
        step = next((t for t, c in enumerate(cumulative) if c > (k + point) / draws), last)
        yield step, chance[step]


def literal_loss(case, config):
    """Mean over samples and draws of a step's tokens over its probability, and over the sample's steps."""
    advantages, total = case.outcome_advantages(config.scale == "std"), 0.0
    samples = len(case.trajectory.final)
    for i in range(samples):
        steps = case.last_step(i) + 1 if config.step_average == "mean" else 1
        for step, chance in drawn_steps(case, i, config):
            weight = 1 / chance / config.num_sampled_steps / steps / samples
            for place in range(case.trajectory.final.shape[1]):
                if int(case.trajectory.reveal_step[i, place]) != step:
                    continue
                new, old, reference = (
                    case.logp(who, i, step, place, case.sampler.temperature)
                    for who in (case.policy, case.old, case.reference)
                )
                ratio = surrogate(new - old.detach(), advantages[i], config.epsilon, config.epsilon_high)
                total = total + weight * (ratio + config.beta * kl(config.kl, new, reference))
    return total


@pytest.mark.parametrize("rule", ["random", "low_confidence"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_sampled_steps": 2},
        {"num_sampled_steps": 4, "step_average": "sum", "uniform_share": 0.3, "beta": 0.2},
        # More draws than steps: some are drawn several times.
        {"epsilon": 0.02, "epsilon_high": 0.05, "beta": 0.1, "kl": "k2"},
    ],
)
def test_loss_and_gradient_are_those_of_the_loop(tiny_policy, rule, settings):
    case, objective = make_case(tiny_policy, remasking=rule), make_objective(**settings)
    views = views_of(objective, case)
    output = loss_of(objective, case, views)
    expected = literal_loss(case, objective.config)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    found, wanted = (flat_gradient(value, case.policy) for value in (output.loss, expected))
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, **EXACT)
    assert set(output.metrics) == set(objective.metric_keys)
    # Every step at most once, however often it was drawn, and none after the end of the text.
    assert views.inputs.shape[1] == objective.num_views(case.sampler)
    for i in range(len(views)):
        seen = views.step[i][views.weight[i] != 0].tolist()
        assert sorted(set(seen)) == seen == sorted({t for t, _ in drawn_steps(case, i, objective.config)})


def every_draw(chance, draws):
    """(probability, point in (0, 1) of each draw) of all outcomes of stratified draws with these chances."""
    edges = [0.0, *itertools.accumulate(chance)]
    strata = []
    for k in range(draws):
        cuts = sorted({k / draws, (k + 1) / draws, *(e for e in edges if k / draws < e < (k + 1) / draws)})
        # The middle of each piece, as a share of the stratum.
        strata.append([((b - a) * draws, (a + b) / 2 * draws - k) for a, b in itertools.pairwise(cuts)])
    for pieces in itertools.product(*strata):
        yield math.prod(length for length, _ in pieces), [point for _, point in pieces]


@pytest.mark.parametrize(("rule", "vocab"), [("random", 3), ("plackett_luce", 3), ("left_to_right", 4)])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_expected_over_all_draws_and_trajectories_it_is_the_gradient(rule, vocab, draws, monkeypatch):
    # Also with the end of the text among the tokens (4), where later steps cannot be drawn.
    sampler = SamplerConfig(
        max_completion_length=3,
        diffusion_steps=3,
        block_length=3,
        temperature=0.8,
        remasking=rule,
        position_temperature=0.3,
        early_stop=False,
    )
    world = World(tabular_policy(3, vocab), sampler)
    objective = make_objective(
        num_sampled_steps=draws, baseline="none", step_average="sum", uniform_share=0.2
    )
    trajectory = world.trajectory()
    rows, points, weight = [], [], []
    for n, chance in enumerate(world.probabilities().tolist()):
        steps = int(trajectory.last_step[n]) + 1
        entropy = [float(h) + 1e-8 for h in trajectory.entropy[n, :steps]]
        mixture = [0.8 * h / sum(entropy) + 0.2 / steps for h in entropy]
        for probability, where in every_draw(mixture, draws):
            rows, points, weight = [*rows, n], [*points, where], [*weight, chance * probability]
    assert sum(weight) == pytest.approx(1)
    table = torch.tensor(points, dtype=torch.float64)
    monkeypatch.setattr(selection, "uniform", lambda seeds, stream, step, num: table[seeds])
    everything = replace(trajectory[torch.tensor(rows)], seeds=torch.arange(len(rows)))
    advantages = objective.advantages(Rewards(rewards(world)[torch.tensor(rows)], {}, 1, 3))
    views = objective.views(everything, objective.select(everything, advantages), advantages, 0)
    views = replace(views, weight=views.weight * torch.tensor(weight, dtype=torch.float64)[:, None])
    loss = objective.loss(score(world.policy, views, sampler), None, views).loss
    truth = world.gradient(rewards(world))
    assert truth.norm() > 0.02
    torch.testing.assert_close(-flat_gradient(loss, world.policy), truth, **EXACT)


def test_forward_passes_of_a_run(tmp_path):
    (row,) = runs.train(
        tmp_path, "train.max_steps=1", "objective.name=agrpo", "objective.num_sampled_steps=1"
    )
    trained = round(16 * (1 - row["steps/skipped_samples_fraction"]))
    assert row["update/canvases"] == trained > 0
    assert row["loss/ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"update_split": "steps", "updates_per_rollout": 5}, "5 does not divide the 24 sampled steps"),
        ({"update_split": "steps", "updates_per_rollout": 4}, None),
        ({}, None),
    ],
)
def test_problems(train, message):
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    found = make_objective().problems(SimpleNamespace(diffusion_steps=128), train)
    assert [message in line for line in found] == ([True] if message else [])


def test_passes_are_bounded_by_steps_and_draws():
    assert make_objective().num_views(SimpleNamespace(diffusion_steps=128)) == 24
    assert make_objective().num_views(SimpleNamespace(diffusion_steps=8)) == 8


def test_bad_settings():
    for settings in ({"num_sampled_steps": 0}, {"uniform_share": 1.1}, {"step_average": "max"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_objective(**settings)
