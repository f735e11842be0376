"""UniGRPO: the rates it masks at, its formula as a loop, its cost."""

from dataclasses import replace

import pytest
import torch

from egspo.objectives import unigrpo
from sequences import (
    DOUBLE,
    MASK,
    assert_same_loss,
    draw_views,
    literal_token_loss,
    make_rewards,
    make_trajectory,
    normalised,
    random_logp,
)

REWARDS = make_rewards(1.0, 0.0, 0.5, 0.75)
# Half the differences, over the standard deviations sqrt(1/2) and sqrt(1/32) and 1e-4.
ADVANTAGES = [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)]
ADVANTAGES += [-0.125 / (0.03125**0.5 + 1e-4), 0.125 / (0.03125**0.5 + 1e-4)]
MANY = 4000


def make_objective(**settings):
    return unigrpo.Objective(unigrpo.Config(name="unigrpo", **settings))


def masked_in_passes(passes: int, **settings) -> torch.Tensor:
    """Which of the canvas's 4 places are masked, for many samples: [passes, samples, 4]."""
    one = make_trajectory()[:1]
    trajectory = replace(one[torch.zeros(MANY, dtype=torch.long)], seeds=torch.arange(MANY))
    objective, rewards = make_objective(**settings), make_rewards(*[0.0, 1.0] * (MANY // 2))
    views = [draw_views(objective, trajectory, rewards, n) for n in range(passes)]
    return torch.stack([v.inputs[:, 0, 4:] == MASK for v in views])


def test_defaults():
    config = unigrpo.Config(name="unigrpo")
    assert (config.scale, config.aggregation, config.mask_rates) == ("std", "completions", "spread")
    assert (config.epsilon, config.epsilon_high, config.beta, config.kl) == (0.2, 0.2, 0.04, "k3")


def test_prompts_stay_whole_and_what_is_masked_is_scored_up_to_the_end():
    trajectory = make_trajectory()
    for iteration in range(4):
        views = draw_views(make_objective(), trajectory, REWARDS, iteration)
        assert torch.equal(views.inputs[:, 0, :4], trajectory.prompt_ids)
        masked = views.inputs[:, 0, 4:] == MASK
        assert torch.equal(views.inputs[:, 0, 4:], torch.where(masked, MASK, trajectory.final))
        assert torch.equal(views.scored[:, 0], masked & trajectory.completion_mask)
        count = views.scored[:, 0].sum(1)
        # One over the length, whatever was masked of it; nothing if nothing was.
        length = trajectory.completion_mask.sum(1)
        assert views.weight[:, 0].tolist() == [
            1 / int(whole) if n else 0.0 for n, whole in zip(count, length, strict=True)
        ]
        assert views.advantages[:, 0].tolist() == pytest.approx(ADVANTAGES)


@pytest.mark.parametrize("mask_rates", ["spread", "random"])
def test_every_pass_masks_at_a_uniform_rate(mask_rates):
    masked = masked_in_passes(3, mask_rates=mask_rates).sum(2)
    for row in masked:
        # With a rate uniform on [0, 1], each number of masked places of 4 has probability 1/5: 800 of 4000,
        # standard error 25.
        assert torch.bincount(row, minlength=5).tolist() == pytest.approx([MANY / 5] * 5, abs=110)


def test_passes_are_evenly_spread():
    """Four passes take the rates t, t + 1/4, t + 1/2, t + 3/4, whatever t in [0, 1/4] is."""
    spread = masked_in_passes(4).double().mean(2)
    random = masked_in_passes(4, mask_rates="random").double().mean(2)
    # Var of the mean of 4 rates t + n/4 is that of a uniform in [0, 1/4] = 1/192; plus that of 16 places:
    # E[t(1 - t)] / 16 = 1/96. For independent rates 1/48 + 1/96.
    assert float(spread.mean(0).var()) == pytest.approx(1 / 192 + 1 / 96, rel=0.1)
    assert float(random.mean(0).var()) == pytest.approx(1 / 48 + 1 / 96, rel=0.1)


@pytest.mark.parametrize("aggregation", ["tokens", "completions"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("several_updates", [False, True])
@pytest.mark.parametrize("iteration", [0, 1])
def test_formula_as_a_loop(aggregation, beta, several_updates, iteration):
    objective = make_objective(aggregation=aggregation, beta=beta)
    # Of 10 tokens 8 and 7 are masked, in the second pass none of the last sample.
    trajectory = make_trajectory(seeds=(20, 21, 22, 23))
    views = normalised(objective, draw_views(objective, trajectory, REWARDS, iteration))
    logp, old, ref = (random_logp(views, seed) for seed in range(3))
    if several_updates:
        views = replace(views, old_token_logp=old, old_position_logp=torch.zeros(4, 1, dtype=DOUBLE))
    masked = [[k for k in range(4) if views.scored[i, 0, k]] for i in range(4)]
    assert sum(map(len, masked)) == [8, 7][iteration] and bool(masked[3]) == (iteration == 0)

    def literal(logp):
        total = 0.0
        for i in range(4):
            for k in masked[i]:
                before = old[i, 0, k] if several_updates else logp[i, 0, k].detach()
                token = literal_token_loss(logp[i, 0, k], before, ref[i, 0, k], ADVANTAGES[i], 0.2, beta)
                length = int(trajectory.completion_mask[i].sum())
                share = sum(map(len, masked)) if aggregation == "tokens" else 4 * length
                total = total + token / share
        return total

    assert_same_loss(objective, views, logp, ref if beta else None, literal)


@pytest.mark.parametrize("aggregation", ["tokens", "completions"])
def test_an_update_of_which_nothing_was_masked_has_a_loss_of_zero(aggregation):
    objective = make_objective(aggregation=aggregation)
    views = draw_views(objective, make_trajectory(), REWARDS)
    views = replace(views, scored=views.scored & False, weight=views.weight * 0)
    assert objective.denominator(views) > 0
    normal = normalised(objective, views)
    assert torch.count_nonzero(normal.weight) == 0
    assert not objective.active(normal).any()


@pytest.mark.parametrize(
    "settings", [{"mask_rates": "linear"}, {"epsilon": 1.0}, {"kl": "exact"}, {"aggregation": "sum"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        unigrpo.Config(name="unigrpo", **settings)
