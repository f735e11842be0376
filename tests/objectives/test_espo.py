"""ESPO's views and loss, against a literal loop over the paper's formula."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from completions import (
    MASK,
    canvases_of_a_run,
    check_against,
    made_up_logp,
    made_up_scores,
    make_trajectory,
    views_of,
)
from pydantic import ValidationError

from egspo.config import SamplerConfig
from egspo.objectives import espo

ADVANTAGES = [0.75, -0.5, -0.25]


def make_objective(**settings):
    return espo.Objective(espo.Config(name="espo", **settings))


def test_defaults_are_the_method():
    config = espo.Config(name="espo")
    assert (config.num_draws, config.complement, config.epsilon, config.epsilon_high) == (2, True, 0.2, 0.2)
    assert (config.kl, config.beta, config.baseline, config.scale) == ("k2", 0.01, "leave_one_out", "none")


@pytest.mark.parametrize(("settings", "num"), [({}, 4), ({"num_draws": 3}, 6), ({"complement": False}, 2)])
def test_number_of_views(settings, num, tmp_path):
    objective = make_objective(**settings)
    assert objective.num_views(SamplerConfig()) == num
    assert views_of(objective, make_trajectory(), ADVANTAGES).scored.shape == (3, num, 6)
    overrides = [f"objective.{key}={value}" for key, value in settings.items()]
    canvases, asked = canvases_of_a_run(tmp_path, "objective.name=espo", *overrides)
    assert canvases == asked <= 16 * num


def test_views_mask_a_part_of_the_completion_and_then_the_rest():
    trajectory = make_trajectory()
    views = views_of(make_objective(), trajectory, ADVANTAGES)
    tokens = trajectory.completion_mask
    for first, second in ((0, 1), (2, 3)):
        assert torch.equal(views.scored[:, first] ^ views.scored[:, second], tokens)
    # What is scored is masked; so is all behind the end, which is never scored. Prompts stay.
    canvas = views.inputs[:, :, 2:]
    assert torch.equal(canvas == MASK, views.scored | ~tokens[:, None])
    assert torch.equal(views.inputs[:, :, :2], trajectory.prompt_ids[:, None].expand(-1, 4, -1))
    assert torch.equal(views.weight != 0, views.scored.any(-1))
    assert views.completion_length.tolist() == [6, 3, 1]


def test_draws_differ_between_passes_and_depend_on_the_sample_alone():
    objective, trajectory = make_objective(), make_trajectory(lengths=(6, 6, 6))
    views = views_of(objective, trajectory, ADVANTAGES)
    later = views_of(objective, trajectory, ADVANTAGES, iteration=1)
    assert not torch.equal(views.scored, later.scored)
    alone = views_of(objective, trajectory[1:2], ADVANTAGES[1:2])
    assert torch.equal(alone.scored, views.scored[1:2])


def literal(views, logp, old, ref, settings):
    """The formula of the paper: elbo = 1/V sum_v (n + 1)/l_v sum_k log p."""
    eps, beta = settings.get("epsilon", 0.2), settings.get("beta", 0.01)
    batch, num, length = views.scored.shape
    total = torch.zeros((), dtype=torch.float64)
    for i in range(batch):
        n = [6, 3, 1][i]

        def elbo(values, i=i, n=n):
            bound = torch.zeros((), dtype=torch.float64)
            for v in range(num):
                masked = [k for k in range(length) if views.scored[i, v, k]]
                for k in masked:
                    bound = bound + (n + 1) / len(masked) * values[i, v, k] / num
            return bound

        if not views.scored[i].any():
            continue  # nothing was drawn: a constant that no view stands for
        ratio = ((elbo(logp) - elbo(old)) / n).exp()
        surrogate = torch.minimum(ratio * ADVANTAGES[i], ratio.clamp(1 - eps, 1 + eps) * ADVANTAGES[i])
        kl = (elbo(logp) - elbo(ref)) ** 2 / 2 / n
        total = total + (-surrogate + beta * kl) / batch
    return total


@pytest.mark.parametrize("settings", [{}, {"beta": 0.0}, {"epsilon": 0.01, "epsilon_high": 0.01}])
@pytest.mark.parametrize("complement", [True, False])
def test_loss_is_the_formula(settings, complement):
    objective = make_objective(**settings, complement=complement)
    views = views_of(objective, make_trajectory(), ADVANTAGES, iteration=3)
    logp, old, ref = (made_up_logp(views, seed) for seed in range(3))
    views = replace(views, old_token_logp=old.detach())
    expected = literal(views, logp, old.detach(), ref.detach(), settings)
    output = check_against(objective, views, made_up_scores(logp), made_up_scores(ref.detach()), expected)
    assert output.metrics["loss/clip_fraction"][1] == float(views.scored.any(1).any(1).sum())


def test_before_the_first_update_the_ratio_is_one():
    objective = make_objective(beta=0.0)
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    logp = made_up_logp(views, 0)
    output = objective.loss(made_up_scores(logp), None, views)
    assert float(output.loss.detach()) == pytest.approx(-sum(ADVANTAGES) / 3)
    assert output.metrics["loss/ratio"] == (3.0, 3.0)
    # Its gradient is that of A ELBO / n: here of the 6 tokens' (6 + 1) / l / V / 6.
    (gradient,) = torch.autograd.grad(output.loss, logp)
    count = int(views.scored[0, 0].sum())
    token = int(views.scored[0, 0].nonzero()[0])
    assert float(gradient[0, 0, token]) == pytest.approx(-0.75 / 3 * 7 / count / 4 / 6)


def test_a_ratio_beyond_the_clip_pulls_no_more():
    objective = make_objective(beta=0.0)
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    old = made_up_logp(views, 0).detach()
    # Every token e^0.5 likelier: (n + 1) / n times 0.5 or more in the exponent, above the clip at 1.2.
    logp = ((old + 0.5) * views.scored).requires_grad_()
    views = replace(views, old_token_logp=old)
    output = objective.loss(made_up_scores(logp), None, views)
    (gradient,) = torch.autograd.grad(output.loss, logp)
    assert not bool(gradient[0].any()) and bool(gradient[1].any()) and bool(gradient[2].any())
    assert output.metrics["loss/clip_fraction"] == (1.0, 3.0)


def test_bound_is_the_likelihood_where_masks_do_not_matter():
    # A pair of one draw: (n + 1) (f(S) / l + f(rest) / (n - l)) / 2 with equal tokens a is (n + 1) a; with
    # one view empty half of that: over l in 0..n the mean is n a.
    objective = make_objective(num_draws=1)
    total, num = 0.0, 4000
    trajectory = make_trajectory(lengths=(3,) * num)
    views = views_of(objective, trajectory, [1.0] * num)
    total = objective.bound(-1.0 * views.scored.double(), views)
    assert set(total.tolist()) == {-4.0, -2.0}
    assert float(total.mean()) == pytest.approx(-3, abs=0.05)


@pytest.mark.parametrize(
    "settings", [{"num_draws": 0}, {"epsilon": 1.0}, {"kl": "exact"}, {"beta": -1}, {"draws": 2}]
)
def test_bad_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_objective(**settings)


def test_problems():
    found = make_objective().problems(SamplerConfig(), SimpleNamespace(update_split="steps"))
    assert found == ["train.update_split: steps, but espo trains on whole completions; use samples"]
