"""VOSPO against its formula in literal loops, and what makes it exact."""

from dataclasses import replace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import egspo, vospo
from egspo.sections import TrainConfig
from egspo.types import Rewards
from mdp import World, flat_gradient, reward, rewards, tabular_policy
from traces import GROUP, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-9}
DOUBLE = torch.float64


def make_objective(**settings):
    """With fitted stepwise advantages, so that every part of the formula is at work."""
    return vospo.Objective(vospo.Config(name="vospo", **({"step_advantage_weight": "fitted"} | settings)))


@pytest.fixture(scope="module")
def case(tiny_policy):
    return make_case(tiny_policy, remasking="top_prob")


def literal_score_norm(case, i: int, t: int) -> float:
    """Squared norm of the gradient of the step: its tokens by their tempered logits."""
    total = 0.0
    for place in range(case.sampler.max_completion_length):
        if int(case.trajectory.reveal_step[i, place]) != t:
            continue
        token = int(case.trajectory.final[i, place])
        allowed = [v for v in range(case.old.model.config.vocab_size) if v not in case.old.suppressed]
        inputs = torch.tensor([case.prompt(i) + case.canvas(i, t)])
        logits = case.old.logits(inputs)[0, len(case.prompt(i)) + place, allowed]
        p = (logits.detach() / case.sampler.temperature).softmax(-1)
        gradient = -p
        gradient[allowed.index(token)] += 1
        total += float(gradient.square().sum())
    return total


def test_the_rollout_records_score_norms(case):
    trajectory = case.trajectory
    for i, t in [(0, 0), (1, 2), (3, 4), (GROUP, 1)]:
        if t <= int(trajectory.last_step[i]):
            assert float(trajectory.score_norm[i, t]) == pytest.approx(
                literal_score_norm(case, i, t), abs=1e-9
            )


def literal_returns(case) -> list[list[float]]:
    """r less lambda_t times the one-step reward, lambda_t by weighted least squares over the other groups."""
    trajectory, found = case.trajectory, []
    samples, steps = trajectory.score_norm.shape
    r = [case.reward(canvas) for canvas in trajectory.final.tolist()]
    v = [[case.reward(canvas) for canvas in row] for row in trajectory.one_step.tolist()]
    w = (trajectory.score_norm * trajectory.informative).tolist()
    for i in range(samples):
        row = []
        for t in range(steps):
            both = own = 0.0
            for start in range(0, samples, GROUP):
                peers = range(start, start + GROUP)
                if i in peers:
                    continue
                total = max(sum(w[j][t] for j in peers), 1e-9)
                mean_r = sum(w[j][t] * r[j] for j in peers) / total
                mean_v = sum(w[j][t] * v[j][t] for j in peers) / total
                both += sum(w[j][t] * (r[j] - mean_r) * (v[j][t] - mean_v) for j in peers)
                own += sum(w[j][t] * (v[j][t] - mean_v) ** 2 for j in peers)
            row.append(r[i] - (min(1.0, max(0.0, both / own)) if own > 1e-9 else 0.0) * v[i][t])
        found.append(row)
    return found


def literal_advantages(case) -> list[list[float]]:
    returns = literal_returns(case)
    informative = case.trajectory.informative.tolist()
    w = (case.trajectory.score_norm * case.trajectory.informative).tolist()
    found = []
    for i, row in enumerate(returns):
        peers = [j for j in range(i // GROUP * GROUP, i // GROUP * GROUP + GROUP) if j != i]
        rest = [j for j in range(len(returns)) if j // GROUP != i // GROUP]
        means = []
        for t in range(len(row)):
            product = [(w[j][t] + 1e-9) * returns[j][t] * informative[j][t] for j in range(len(returns))]
            total = sum(w[j][t] + 1e-9 for j in rest)
            kappa, mean = 8 * total / len(rest), sum(product[j] for j in rest) / total
            own = sum(w[j][t] + 1e-9 for j in peers) + kappa
            means.append((sum(product[j] for j in peers) + kappa * mean) / own)
        found.append([row[t] - means[t] if informative[i][t] else 0.0 for t in range(len(row))])
    return found


def test_advantages_against_a_loop(case):
    """With a budget for all steps every one of them is drawn, and weighs 1."""
    objective = make_objective(num_selected_steps=6)
    found = objective.advantages(case.rewards(objective.candidates(case.trajectory)))
    torch.testing.assert_close(found, torch.tensor(literal_advantages(case), dtype=DOUBLE), rtol=0, atol=1e-6)
    assert found.abs().max() > 0.05


def test_the_budget_is_spent_on_drawn_steps_and_adds_nothing_on_average(case):
    objective = make_objective(num_selected_steps=2)
    plain = make_objective(num_selected_steps=6)
    earned = case.rewards(objective.candidates(case.trajectory))
    full = plain.advantages(earned)
    draws = []
    for trial in range(3000):
        drawn = objective.advantages(replace(earned, seeds=earned.seeds + 1000 * trial))
        taken = drawn != 0
        assert abs(int(taken.sum()) - 2 * len(full)) <= len(full) / GROUP
        assert (drawn.abs()[taken] >= full.abs()[taken] - 1e-9).all()
        draws.append(drawn)
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - full).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_loss_against_a_loop(case, beta):
    objective = make_objective(num_selected_steps=3, beta=beta, kl="k2")
    advantages = objective.advantages(case.rewards(objective.candidates(case.trajectory)))
    total, temperature = torch.zeros((), dtype=DOUBLE), case.sampler.temperature
    for i, t in (advantages != 0).nonzero().tolist():
        places = [p for p, at in enumerate(case.trajectory.reveal_step[i].tolist()) if at == t]
        ratio = sum(
            case.logp(case.policy, i, t, p, temperature) - case.logp(case.old, i, t, p, temperature)
            for p in places
        )
        total = total + surrogate(ratio, float(advantages[i, t]), 0.2, 0.5)
        for p in places if beta else []:
            gap = case.logp(case.policy, i, t, p, temperature) - case.logp(
                case.reference, i, t, p, temperature
            )
            total = total + beta * gap**2 / 2
    output = loss_of(objective, case, views_of(objective, case))
    torch.testing.assert_close(output.loss, total / len(advantages), **EXACT)


def test_fitted_weights_leave_the_gradient_as_it_is():
    """Over all trajectories of a group, beside another group that stays as it is: exactly the gradient."""
    sampler = SamplerConfig(
        max_completion_length=2,
        block_length=2,
        diffusion_steps=2,
        temperature=0.8,
        remasking="top_prob",
        early_stop=False,
    )
    world = World(tabular_policy(2, 4), sampler)
    objective = make_objective(num_selected_steps=2, baseline="none")
    chance, trajectory, finals = world.probabilities(), world.trajectory(), rewards(world)
    values = world.one_step_rewards(reward)
    estimate, fitted = 0.0, []
    for i in range(len(chance)):
        rows = torch.tensor([i, (i + 1) % len(chance), 2, 7])  # the first group's own outcome, and others
        # A group of two whose second member depends on the first would be no group: weigh the first alone.
        part = trajectory[rows]
        candidates = objective.candidates(part)
        earned = Rewards(
            finals[rows],
            {},
            2,
            2,
            candidates,
            values[rows].gather(1, candidates.index) * candidates.mask,
            part.score_norm * part.informative,
            part.seeds,
        )
        advantages = objective.advantages(earned)
        fitted.append(advantages[0] - finals[i])
        steps = objective.select(part, advantages)
        views = objective.views(part, steps, advantages, 0)
        only = torch.tensor([float(chance[i]), 0.0, 0.0, 0.0], dtype=DOUBLE)
        views = replace(views, weight=views.weight * only[:, None])
        loss = objective.loss(score(world.policy, views, sampler), None, views).loss
        estimate = estimate - flat_gradient(loss, world.policy)
    assert torch.stack(fitted).abs().max() > 0.01  # something was subtracted
    torch.testing.assert_close(estimate, world.gradient(finals), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cut", [{"num_selected_steps": 6}, {"num_selected_steps": 2}])
def test_each_part_is_a_setting_of_egspo(case, cut):
    parts = {"selection": "optimal", "baseline": "score_weighted", "step_advantage_weight": "fitted"}
    alike = egspo.Objective(egspo.Config(name="egspo", **parts, **cut))
    ours = make_objective(**cut)
    earned = case.rewards(ours.candidates(case.trajectory))
    assert torch.equal(alike.advantages(earned), ours.advantages(earned))


@pytest.mark.parametrize(
    ("settings", "sampler", "train", "words"),
    [
        ({}, {"remasking": "low_confidence"}, {}, "objective.baseline: score_weighted needs exact scores"),
        ({"baseline": "same_rank"}, {}, {}, "objective.selection: optimal needs an advantage of every step"),
        (
            {"baseline": "same_rank", "selection": "top_entropy"},
            {},
            {},
            "objective.step_advantage_weight: fitted needs an advantage of every step",
        ),
        ({"step_advantage_schedule": "linear"}, {}, {}, "'linear' does nothing without a number as step"),
        ({"normalise_step_advantage": True}, {}, {}, "True does nothing without a number as step_advantage"),
        (
            {"selection": "all", "uniform_share": 0.2},
            {},
            {},
            "0.2 does nothing without a selection",
        ),
        (
            {"baseline": "none", "baseline_prior": 1.0},
            {},
            {},
            "1.0 does nothing without baseline=score",
        ),
        (
            {},
            {},
            {"update_split": "steps", "updates_per_rollout": 2},
            "train.update_split: steps does not fit",
        ),
    ],
)
def test_impossible_settings(settings, sampler, train, words):
    plain = {"max_completion_length": 8, "block_length": 8, "diffusion_steps": 8, "remasking": "top_prob"}
    found = make_objective(**settings).problems(SamplerConfig(**(plain | sampler)), TrainConfig(**train))
    assert any(words in line for line in found), found
