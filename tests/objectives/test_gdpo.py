"""GDPO's views and loss, against a literal loop over the paper's formula."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from completions import (
    DOUBLE,
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
from egspo.objectives import gdpo

ADVANTAGES = [0.75, -0.5, -0.25]
# Three-point Gauss-Legendre on [0, 1]: 1/2 and 1/2 -+ sqrt(3/5)/2, weights 5, 8 and 5 of 18.
POINTS = {
    2: ([0.5 - 1 / 12**0.5, 0.5 + 1 / 12**0.5], [0.5, 0.5]),
    3: ([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], [5 / 18, 8 / 18, 5 / 18]),
}


def make_objective(**settings):
    return gdpo.Objective(gdpo.Config(name="gdpo", **settings))


def test_defaults_are_the_method():
    config = gdpo.Config(name="gdpo")
    assert (config.num_points, config.epsilon, config.epsilon_high) == (3, 0.5, 0.5)
    assert (config.masks, config.ratio) == ("independent", "token")
    assert (config.baseline, config.scale) == ("same_step", "none")


@pytest.mark.parametrize("num", [1, 2, 3])
def test_number_of_views(num, tmp_path):
    objective = make_objective(num_points=num)
    assert objective.num_views(SamplerConfig()) == num
    assert views_of(objective, make_trajectory(), ADVANTAGES).scored.shape == (3, num, 6)
    canvases, asked = canvases_of_a_run(tmp_path, "objective.name=gdpo", f"objective.num_points={num}")
    assert canvases == asked <= 16 * num


def test_independent_masks_hold_a_token_with_the_probability_of_their_point():
    num, trajectory = 4000, make_trajectory(lengths=(5,) * 4000)
    views = views_of(make_objective(), trajectory, [1.0] * num)
    assert torch.equal(views.inputs[:, :, 2:] == MASK, views.scored | ~trajectory.completion_mask[:, None])
    assert torch.equal(views.weight != 0, views.scored.any(-1))
    share = views.scored[:, :, :5].double().mean((0, 2))
    assert share.tolist() == pytest.approx(POINTS[3][0], abs=0.01)
    later = views_of(make_objective(), trajectory[:1], [1.0], iteration=1)
    assert not torch.equal(later.scored, views.scored[:1])


def test_counted_masks_hold_a_share_of_the_tokens_and_each_as_often_as_the_others():
    lengths = (6, 3, 1) * 2000
    views = views_of(make_objective(masks="counted"), make_trajectory(lengths=lengths), [1.0] * 6000)
    # 6 * 0.113 and 3 * 0.113 are less than 1, 3 * 0.5 is 1.5, 6 * 0.887 is 5.3.
    counts = views.scored.sum(-1).unflatten(0, (2000, 3))
    assert torch.equal(counts, torch.tensor([[1, 3, 5], [1, 1, 2], [1, 1, 1]]).expand(2000, 3, 3))
    assert torch.equal(
        views.inputs[:, :, 2:] == MASK,
        views.scored | ~make_trajectory(lengths=lengths).completion_mask[:, None],
    )
    often = views.scored[::3].double().mean(0)
    assert often.flatten().tolist() == pytest.approx([1 / 6] * 6 + [1 / 2] * 6 + [5 / 6] * 6, abs=0.05)


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.05, "masks": "counted"},
        {"epsilon": 0.01, "epsilon_high": 0.01},
        {"ratio": "completion", "epsilon": 0.2, "epsilon_high": 0.2},
    ],
)
def test_loss_is_the_formula(settings, num):
    objective = make_objective(**settings, num_points=num)
    views = views_of(objective, make_trajectory(), ADVANTAGES, iteration=2)
    logp, old, ref = (made_up_logp(views, seed, 0.3) for seed in range(3))
    views = replace(views, old_token_logp=old.detach())
    eps, beta = settings.get("epsilon", 0.5), settings.get("beta", 0.0)
    total = torch.zeros((), dtype=DOUBLE)
    for i, n in enumerate([6, 3, 1]):
        if not views.scored[i].any():
            continue  # nothing was drawn: a constant that no view stands for

        def elbo(values, i=i):
            bound = torch.zeros((), dtype=DOUBLE)
            for q, (t, w) in enumerate(zip(*POINTS[num], strict=True)):
                for k in range(6):
                    if views.scored[i, q, k]:
                        bound = bound + w / t * values[i, q, k]
            return bound

        gap, whole = elbo(logp) - elbo(old.detach()), settings.get("ratio") == "completion"
        ratio = (gap if whole else gap / n).exp()
        surrogate = torch.minimum(ratio * ADVANTAGES[i], ratio.clamp(1 - eps, 1 + eps) * ADVANTAGES[i])
        kl = (elbo(logp) - elbo(ref.detach())) ** 2 / 2 / n
        total = total + (-surrogate / (n if whole else 1) + beta * kl) / 3
    reference = made_up_scores(ref.detach())
    output = check_against(objective, views, made_up_scores(logp), reference, total)
    assert output.metrics["loss/clip_fraction"][1] == float(views.scored.any(1).any(1).sum())


@pytest.mark.parametrize(("num", "exact"), [(1, False), (2, True), (3, True)])
def test_bound_averages_to_the_mean_over_all_orders(num, exact):
    """Every mask of three tokens at every point, by its probability, through the objective's own bound."""
    objective = make_objective(num_points=num)
    generator = torch.Generator().manual_seed(3)
    table = {
        mask: torch.rand(3, generator=generator, dtype=DOUBLE) for mask in itertools.product([0, 1], repeat=3)
    }
    levels = [0.5] if num == 1 else POINTS[num][0]
    views = views_of(objective, make_trajectory(lengths=(3,), length=3, block_length=3), [1.0])
    total = 0.0
    for masks in itertools.product(table, repeat=num):
        scored = torch.tensor([masks], dtype=torch.bool)
        logp = torch.stack([-table[mask] for mask in masks])[None] * scored
        chance = math.prod(
            level if hidden else 1 - level
            for mask, level in zip(masks, levels, strict=True)
            for hidden in mask
        )
        total += chance * float(objective.bound(logp, replace(views, scored=scored)))
    orders = []
    for order in itertools.permutations(range(3)):
        hidden, each = [1, 1, 1], 0.0
        for k in order:
            each -= float(table[tuple(hidden)][k])
            hidden[k] = 0
        orders.append(each)
    assert (total == pytest.approx(sum(orders) / 6, abs=1e-12)) == exact


@pytest.mark.parametrize("ratio", ["token", "completion"])
def test_before_the_first_update_the_gradient_is_that_of_espo(ratio):
    # d rho = d ELBO, and all divide by the length.
    objective = make_objective(ratio=ratio)
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    logp = made_up_logp(views, 0)
    output = objective.loss(made_up_scores(logp), None, views)
    (gradient,) = torch.autograd.grad(output.loss, logp)
    q, k = (int(x) for x in views.scored[0].nonzero()[0])
    t, w = POINTS[3][0][q], POINTS[3][1][q]
    assert float(gradient[0, q, k]) == pytest.approx(-0.75 / 3 / 6 * w / t)


@pytest.mark.parametrize(
    "settings", [{"num_points": 0}, {"epsilon": 1.0}, {"kl": "exact"}, {"points": 2}, {"masks": "t"}]
)
def test_bad_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_objective(**settings)


def test_problems():
    found = make_objective().problems(SamplerConfig(), SimpleNamespace(update_split="steps"))
    assert found == ["train.update_split: steps, but gdpo trains on whole completions; use samples"]
