"""Steps drawn at random: their weights are 1 on average, and the draws spend the budget as they should."""

import itertools

import pytest
import torch

from egspo.ops.selection import _inclusion, optimal_draws, split_draws

GROUP = 3


def sizes(seed: int = 0, batch: int = 2 * GROUP, steps: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(batch, steps, generator=generator, dtype=torch.float64) ** 3
    return size.masked_fill(torch.rand(batch, steps, generator=generator) < 0.2, 0.0)


def literal_inclusion(share: list[float], budget: int) -> list[float]:
    """The c at which min(1, c s) adds up to the budget, by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if sum(min(1.0, c * s) for s in share) < budget else (low, c)
    return [min(1.0, high * s) for s in share]


@pytest.mark.parametrize(("seed", "budget"), [*itertools.product(range(4), (1, 3, 10, 18))])
def test_probabilities_are_proportional_to_size_up_to_one(seed, budget):
    share = sizes(seed).flatten()
    share = share / share.sum()
    expected = literal_inclusion(share.tolist(), min(budget, int((share > 0).sum())))
    torch.testing.assert_close(_inclusion(share, budget), torch.tensor(expected, dtype=torch.float64))


def test_enough_for_all_takes_all_of_size_above_zero():
    size = sizes()
    weight = optimal_draws(size, 5, GROUP, 0.1, torch.arange(len(size)))
    assert torch.equal(weight, (size > 0).double())


def test_a_step_is_drawn_as_often_as_its_probability_and_weighs_its_inverse():
    size, budget, trials = sizes(), 2, 3000
    share = size / size.sum()
    mixed = torch.where(size > 0, 0.8 * share + 0.2 / (size > 0).sum(), 0.0)
    expected = _inclusion(mixed.flatten(), budget * len(size)).view_as(size)
    count = torch.zeros_like(size)
    for trial in range(trials):
        weight = optimal_draws(size, budget, GROUP, 0.2, torch.arange(len(size)) + 100 * trial)
        drawn = weight > 0
        torch.testing.assert_close(weight[drawn], 1 / expected[drawn])
        # Systematic: a group draws the whole numbers next to what its probabilities add up to.
        sums = expected.view(2, -1).sum(1)
        assert ((drawn.view(2, -1).sum(1) - sums).abs() < 1).all()
        count += drawn
    # Four standard errors of a frequency of 3000: 0.037 at most.
    torch.testing.assert_close(count / trials, expected, rtol=0, atol=0.037)


def test_nothing_to_learn_draws_nothing():
    assert not optimal_draws(torch.zeros(3, 4), 2, GROUP, 0.1, torch.arange(3)).any()


def test_the_draw_of_a_group_depends_on_its_own_seed_and_the_common_scale_alone():
    size, seeds = sizes(), torch.arange(6)
    whole = optimal_draws(size, 2, GROUP, 0.1, seeds)
    swapped = optimal_draws(size.view(2, GROUP, -1).flip(0).flatten(0, 1), 2, GROUP, 0.1, seeds.roll(GROUP))
    torch.testing.assert_close(swapped.view(2, GROUP, -1).flip(0).flatten(0, 1), whole)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_the_best_half_is_certain_and_the_rest_unbiased(num_steps):
    entropy = torch.tensor([[0.5, 2.0, 0.0, 1.0, 3.0]], dtype=torch.float64).expand(4000, -1)
    eligible = torch.tensor([[True, True, True, True, False]]).expand(4000, -1)
    weight = split_draws(entropy, eligible, 0.3, num_steps, torch.arange(4000))
    certain = [1, 3, 0][: (num_steps + 1) // 2]
    assert (weight[:, certain] == 1).all() and not weight[:, 4].any()
    if num_steps > 1:  # a lone step is the best one; else every other has weight 1 on average
        mean = weight.mean(0)
        spread = weight.std(0) / 4000**0.5
        rest = [t for t in range(4) if t not in certain]
        assert ((mean[rest] - 1).abs() < 4 * spread[rest] + 1e-9).all()
    assert ((weight > 0).sum(1) <= num_steps).all()
