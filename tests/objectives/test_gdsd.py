"""GDSD's views and loss, against a literal loop over the formula."""

import math
from dataclasses import replace

import pytest
import torch
from completions import (
    DOUBLE,
    canvases_of_a_run,
    check_against,
    made_up_logp,
    made_up_scores,
    make_trajectory,
    views_of,
)
from pydantic import ValidationError

from egspo.config import SamplerConfig
from egspo.objectives import espo, gdsd

ADVANTAGES = [0.75, -0.5, -0.25]


def make_objective(**settings):
    return gdsd.Objective(gdsd.Config(name="gdsd", **settings))


def test_defaults_are_the_method():
    config = gdsd.Config(name="gdsd")
    assert (config.psi, config.num_draws, config.complement, config.beta) == (10.0, 1, True, 0.001)
    assert (config.epsilon, config.epsilon_high, config.baseline) == (4e-4, 4e-4, "leave_one_out")


@pytest.mark.parametrize(("settings", "num"), [({}, 2), ({"num_draws": 2}, 4), ({"complement": False}, 1)])
def test_number_of_views(settings, num, tmp_path):
    assert make_objective(**settings).num_views(SamplerConfig()) == num
    overrides = [f"objective.{key}={value}" for key, value in settings.items()]
    canvases, asked = canvases_of_a_run(tmp_path, "objective.name=gdsd", *overrides)
    assert canvases == asked <= 16 * num


def test_views_are_those_of_espo():
    trajectory, settings = make_trajectory(), {"num_draws": 2}
    ours = views_of(make_objective(**settings), trajectory, ADVANTAGES, iteration=1)
    theirs = views_of(
        espo.Objective(espo.Config(name="espo", **settings)), trajectory, ADVANTAGES, iteration=1
    )
    assert torch.equal(ours.inputs, theirs.inputs) and torch.equal(ours.scored, theirs.scored)


@pytest.mark.parametrize("num_draws", [1, 2])
@pytest.mark.parametrize("complement", [True, False])
# Bounds that hold every draw, none, and some.
@pytest.mark.parametrize(
    "settings", [{}, {"epsilon": 0.99, "epsilon_high": 1e3}, {"epsilon": 0.6, "beta": 0.0}]
)
def test_loss_is_the_formula(settings, complement, num_draws):
    settings = {"psi": 2.0, "complement": complement, "num_draws": num_draws} | settings
    objective = make_objective(**settings)
    views = views_of(objective, make_trajectory(), ADVANTAGES, iteration=5)
    logp, old, ref = (made_up_logp(views, seed, 0.5) for seed in range(3))
    views = replace(views, old_token_logp=old.detach())
    config, per_draw = objective.config, 2 if complement else 1
    low, high = math.log(1 - config.epsilon), math.log(1 + config.epsilon_high)
    total, held, draws = torch.zeros((), dtype=DOUBLE), 0, 0
    for i, n in enumerate([6, 3, 1]):
        if not views.scored[i].any():
            continue  # nothing was drawn: a constant that no view stands for
        for d in range(num_draws):

            def guess(values, i=i, n=n, d=d):
                bound = torch.zeros((), dtype=DOUBLE)
                for v in range(d * per_draw, (d + 1) * per_draw):
                    masked = [k for k in range(6) if views.scored[i, v, k]]
                    for k in masked:
                        bound = bound + (n + 1) / len(masked) * values[i, v, k] / per_draw
                return bound

            delta = guess(logp) - guess(old.detach())
            residual = torch.clamp(delta, low, high) / n - 2.0 * ADVANTAGES[i]
            kl = (guess(logp) - guess(ref.detach())) ** 2 / 2 / n
            total = total + (residual**2 + config.beta * kl) / num_draws / 3
            held += int(not low <= float(delta.detach()) <= high)
            draws += 1
    reference = made_up_scores(ref.detach())
    output = check_against(objective, views, made_up_scores(logp), reference, total)
    assert output.metrics["loss/clip_fraction"] == (held, draws)


def test_before_the_first_update_it_pulls_as_a_policy_gradient():
    # (0 - psi A)^2 has the derivative -2 psi A / n with respect to the bound: 2 psi times ESPO's.
    objective = make_objective(beta=0.0)
    plain = espo.Objective(espo.Config(name="espo", beta=0.0, num_draws=1))
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    logp = made_up_logp(views, 0)
    (ours,) = torch.autograd.grad(objective.loss(made_up_scores(logp), None, views).loss, logp)
    (theirs,) = torch.autograd.grad(plain.loss(made_up_scores(logp), None, views).loss, logp)
    torch.testing.assert_close(ours, 20 * theirs)


def test_the_fit_is_the_guided_teacher():
    # Delta / n = psi A leaves no residual and no gradient.
    objective = make_objective(beta=0.0, psi=0.1, epsilon=0.9, epsilon_high=9.0)
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    old = made_up_logp(views, 0).detach()
    advantages = torch.tensor(ADVANTAGES, dtype=DOUBLE)
    # One number a sample, added to each of its masked tokens: Delta = number * (n + 1) * views shown / 2.
    shown = views.scored.any(-1).sum(1)
    number = 0.1 * advantages * views.completion_length / (views.completion_length + 1) * 2 / shown
    logp = ((old + number[:, None, None]) * views.scored).requires_grad_()
    output = objective.loss(made_up_scores(logp), None, replace(views, old_token_logp=old))
    (gradient,) = torch.autograd.grad(output.loss, logp)
    assert float(output.loss.detach()) == pytest.approx(0, abs=1e-20)
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("settings", [{"psi": 0}, {"num_draws": 0}, {"epsilon": 0}, {"epsilon_high": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_objective(**settings)
