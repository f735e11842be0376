"""Which steps are trained on."""

import pytest
import torch

from egspo.ops import selection
from egspo.ops.selection import SELECTIONS, draw_steps, entropy_distribution, nonzero_steps, select_steps

ENTROPY = torch.tensor([[0.5, 2.0, 1.0, 3.0, 0.1]])
SEED = torch.tensor([0])


def chosen(rule, num, eligible, entropy=ENTROPY, seeds=SEED):
    steps = select_steps(rule, num, entropy, torch.tensor([eligible]), seeds)
    assert steps.index.shape == steps.mask.shape
    assert bool((steps.index[~steps.mask] == 0).all())
    return steps.index[0][steps.mask[0]].tolist()


@pytest.mark.parametrize(
    ("rule", "num", "last", "expected"),
    [
        ("top_entropy", 2, 5, [3, 1]),
        ("top_entropy", 2, 3, [1, 2]),
        ("top_entropy", 4, 2, [1, 0]),
        ("top_entropy", 9, 5, [3, 1, 2, 0, 4]),
        ("all", 1, 5, [0, 1, 2, 3, 4]),
        ("all", 1, 3, [0, 1, 2]),
        # The middles of two halves of five steps: floor(1.25), floor(3.75).
        ("uniform", 2, 5, [1, 3]),
        # Of three steps: floor(0.75), floor(2.25).
        ("uniform", 2, 3, [0, 2]),
        ("uniform", 1, 5, [2]),
        ("uniform", 5, 5, [0, 1, 2, 3, 4]),
        # More are wanted than there are: all of them, once.
        ("uniform", 4, 3, [0, 1, 2]),
    ],
)
def test_by_hand(rule, num, last, expected):
    assert chosen(rule, num, [t < last for t in range(5)]) == expected


@pytest.mark.parametrize(
    ("left", "num", "last", "expected"),
    [
        # Entropies 0.5, 2, 1, 3, 0.1, in all 6.6: without 3 and 2 there is 1.6 left, without 1 too, 0.6.
        (0.0, 5, 5, [3, 1, 2, 0, 4]),
        (0.02, 5, 5, [3, 1, 2, 0]),
        (0.1, 5, 5, [3, 1, 2]),
        (0.2, 5, 5, [3, 1, 2]),
        (0.25, 5, 5, [3, 1]),
        (0.9, 5, 5, [3]),
        (0.1, 2, 5, [3, 1]),
        # Of the first three steps, 3.5: without 2 and 1 there is 0.5 left.
        (0.15, 5, 3, [1, 2]),
    ],
)
def test_adaptive_stops_where_little_entropy_is_left(left, num, last, expected):
    eligible = torch.tensor([[t < last for t in range(5)]])
    steps = select_steps("adaptive", num, ENTROPY, eligible, SEED, left)
    assert steps.index[0][steps.mask[0]].tolist() == expected


def test_ties_go_to_the_earlier_step():
    assert chosen("top_entropy", 2, [True] * 4, torch.tensor([[1.0, 2.0, 1.0, 1.0]])) == [1, 0]


def test_random_takes_every_step_equally_often_and_none_twice():
    num = 6_000
    eligible = torch.tensor([True, True, True, True, False]).expand(num, 5)
    steps = select_steps("random", 2, ENTROPY.expand(num, 5), eligible, torch.arange(num))
    assert bool(steps.mask.all()) and bool((steps.index[:, 0] != steps.index[:, 1]).all())
    # Each of four steps with probability 2 / 4; standard error sqrt(1 / 4 / 6000) = 0.0065.
    share = torch.bincount(steps.index.flatten(), minlength=5) / num
    assert share.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.0], abs=0.026)


@pytest.mark.parametrize("rule", SELECTIONS)
def test_depends_on_the_sample_alone(rule):
    generator = torch.Generator().manual_seed(0)
    entropy, seeds = torch.rand(8, 6, generator=generator), torch.arange(8)
    eligible = torch.arange(6) <= torch.tensor([0, 1, 2, 3, 4, 5, 5, 2])[:, None]
    whole = select_steps(rule, 3, entropy, eligible, seeds)
    for n in range(8):
        alone = select_steps(rule, 3, entropy[n : n + 1], eligible[n : n + 1], seeds[n : n + 1])
        assert torch.equal(alone.index[0], whole.index[n]) and torch.equal(alone.mask[0], whole.mask[n])
        kept = whole.index[n][whole.mask[n]].tolist()
        assert len(set(kept)) == len(kept) and all(eligible[n, t] for t in kept) and kept


# ---- sampled steps -------------------------------------------------------------------------------------


def test_probabilities_are_a_mixture_over_the_eligible_steps():
    entropy = torch.tensor([[1.0, 3.0, 0.0, 5.0]])
    eligible = torch.tensor([[True, True, True, False]])
    # By entropy 1/4, 3/4, 0; evenly 1/3 each.
    for share in (0.0, 0.3, 1.0):
        found = entropy_distribution(entropy, eligible, share)[0].tolist()
        wanted = [(1 - share) * p + share / 3 for p in (0.25, 0.75, 0.0)]
        assert found == pytest.approx([*wanted, 0.0], abs=1e-8)
        assert all(p > 0 for p in found[:3])


def test_without_entropy_all_steps_are_equal():
    found = entropy_distribution(torch.zeros(1, 3), torch.tensor([[True, False, True]]), 0.0)
    assert found.tolist() == [[0.5, 0.0, 0.5]]


PROBABILITY = torch.tensor([[0.1, 0.0, 0.35, 0.05, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("num_draws", [1, 2, 3, 7])
def test_weights_are_one_in_expectation_over_all_draws(num_draws, monkeypatch):
    # Each draw is uniform in its stratum, independent of the others, and the weights are a sum over draws:
    # their expectation is the sum of the draws' own. A grid of the multiples of 1/1000 shifted by half hits
    # every interval between multiples of 1/1000 exactly as often as its length says; 0.05 K is one such.
    cells = 1000
    grid = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    monkeypatch.setattr(selection, "uniform", lambda seeds, stream, step, num: grid[:, None].expand(-1, num))
    probability = PROBABILITY.expand(cells, 5)
    weight = draw_steps(probability, num_draws, torch.arange(cells))
    wanted = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weight.mean(0), wanted, rtol=0, atol=1e-9)
    # Draws are whole: n_t = K p_t w_t, K in all.
    times = weight * probability * num_draws
    torch.testing.assert_close(times, times.round(), rtol=0, atol=1e-9)
    assert bool((times.sum(1).round() == num_draws).all())


def test_strata_bound_how_often_a_step_is_drawn():
    # n_t is between K p_t - 2 and K p_t + 2 exclusive: only the two strata at its edges are undecided.
    num, draws = 500, 40
    weight = draw_steps(PROBABILITY.expand(num, 5), draws, torch.arange(num))
    times, expected = (weight * PROBABILITY * draws).round(), PROBABILITY * draws
    assert bool(((times - expected).abs() < 2).all())
    assert float(times.var(0).max()) < 0.51


def test_draws_are_less_varied_than_independent_ones():
    # K p (1 - p) of independent draws is 8 * 0.25 = 2 for p = 1/2; here its strata are all decided: 0.
    half = torch.tensor([[0.5, 0.5]], dtype=torch.float64).expand(200, 2)
    assert torch.equal(draw_steps(half, 8, torch.arange(200)), torch.ones(200, 2, dtype=torch.float64))


def test_a_draw_depends_on_the_sample_alone():
    probability = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probability = probability / probability.sum(1, keepdim=True)
    whole = draw_steps(probability, 3, torch.arange(6))
    for n in range(6):
        alone = draw_steps(probability[n : n + 1], 3, torch.arange(n, n + 1))
        assert torch.equal(alone[0], whole[n])


def test_rounding_never_draws_what_cannot_be_drawn(monkeypatch):
    # Ten tenths add up to less than 1, the last step has no probability, and the greatest uniform number
    # ends the last stratum: 49 + (1 - 2^-53) is 50.
    probability = torch.tensor([[0.1] * 10 + [0.0]], dtype=torch.float64)
    assert float(probability.cumsum(1)[0, -1]) < 1.0
    greatest = torch.full((1, 50), 1 - 2**-53, dtype=torch.float64)
    monkeypatch.setattr(selection, "uniform", lambda seeds, stream, step, num: greatest)
    weight = draw_steps(probability, 50, torch.zeros(1, dtype=torch.long))
    assert float(weight[0, 9]) > 0 and float(weight[0, 10]) == 0
    assert float((weight * probability).sum()) == pytest.approx(1)


def test_nonzero_steps_come_in_their_own_order():
    weight = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0]])
    steps = nonzero_steps(weight, 2)
    assert steps.index.tolist() == [[1, 3], [0, 0], [0, 2]]
    assert steps.mask.tolist() == [[True, True], [False, False], [True, True]]
