"""Advantages of denoising steps, by hand."""

import itertools
import math

import pytest
import torch

from egspo.ops.advantages import (
    BASELINES,
    fitted_weights,
    group_spread,
    likelihood_weights,
    progress_returns,
    score_weighted_baseline,
    stepwise_returns,
    subtract_baseline,
)

DOUBLE = torch.float64


def test_stepwise_returns():
    # r = 1, v = 0.5: 1.5 * 1 - 0.5 * 0.5 = 1.25, and 3 * 1 - 2 * 0.5 = 2; over 1.5 and 3.
    final, values = torch.tensor([1.0]), torch.tensor([[0.5, 0.5]])
    weight = torch.tensor([[0.5, 2.0]])
    assert stepwise_returns(final, values, weight, normalise=False).tolist() == [[1.25, 2.0]]
    expected = [1.25 / 1.5, 2.0 / 3]
    assert stepwise_returns(final, values, weight, normalise=True)[0].tolist() == pytest.approx(expected)


def test_weight_0_is_the_reward():
    final, values = torch.tensor([0.3, 0.9], dtype=DOUBLE), torch.tensor([[0.5], [0.1]], dtype=DOUBLE)
    assert torch.equal(stepwise_returns(final, values, torch.zeros(2, 1), normalise=True)[:, 0], final)


# Two groups of two samples, two columns; the last sample has no second column.
RETURNS = torch.tensor([[1.0, 2.0], [3.0, 6.0], [10.0, 20.0], [30.0, 99.0]], dtype=DOUBLE)
MASK = torch.tensor([[True, True], [True, True], [True, True], [True, False]])


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [[1, 2], [3, 6], [10, 20], [30, 0]]),
        # Group means 2 and 4; 20 and 20, of one member.
        ("same_step", [[-1, -2], [1, 2], [-10, 0], [10, 0]]),
        ("same_rank", [[-1, -2], [1, 2], [-10, 0], [10, 0]]),
        # The other member; nothing where there is none.
        ("leave_one_out", [[-2, -4], [2, 4], [-20, 20], [20, 0]]),
        # (1 + 2 + 3 + 6 + 10 + 20 + 30) / 7 = 72 / 7.
        (
            "batch",
            [
                [1 - 72 / 7, 2 - 72 / 7],
                [3 - 72 / 7, 6 - 72 / 7],
                [10 - 72 / 7, 20 - 72 / 7],
                [30 - 72 / 7, 0],
            ],
        ),
    ],
)
def test_baselines(baseline, expected):
    advantages = subtract_baseline(RETURNS, MASK, 2, baseline)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=DOUBLE))


@pytest.mark.parametrize("baseline", [b for b in BASELINES if b != "none"])
def test_equal_rewards_have_no_advantage_at_all(baseline):
    # 0.1 + 0.1 + 0.1 is not 0.3: rounding must not leave something to train on.
    returns = torch.full((6, 3), 0.1, dtype=DOUBLE)
    advantages = subtract_baseline(returns, torch.ones(6, 3, dtype=torch.bool), 3, baseline)
    assert torch.count_nonzero(advantages) == 0


def test_no_baseline_reads_a_return_that_does_not_count():
    for baseline in BASELINES:
        other = torch.where(MASK, RETURNS, torch.nan)
        expected = subtract_baseline(RETURNS, MASK, 2, baseline)
        assert torch.equal(subtract_baseline(other, MASK, 2, baseline), expected)


def test_likelihood_weights():
    # Groups (1, -1) and (2, 0) at psi 1/2. First: e^1/2 and e^-1/2 over their sum, less the reverse, that is
    # tanh(1/2). Second: softmax(1, 0) is (e, 1) / (e + 1), softmax(-1, 0) the reverse: tanh(1/2) again, as a
    # shift of the whole group is of no account. Times 2.
    advantages = torch.tensor([[1.0], [-1.0], [2.0], [0.0]], dtype=DOUBLE)
    weights = likelihood_weights(advantages, 2, 0.5)[:, 0]
    assert weights.tolist() == pytest.approx([2 * math.tanh(s / 2) for s in (1, -1, 1, -1)])
    assert torch.count_nonzero(likelihood_weights(torch.full((6, 2), 0.1, dtype=DOUBLE), 3, 2.0)) == 0


def test_progress_returns_by_hand():
    # Gains 1, -1, 3; means of what came after: (1 + 4) / 2, 4, and the last value itself.
    values = torch.tensor([[1.0, 2.0, 1.0, 4.0]], dtype=torch.float64)
    assert progress_returns(values).tolist() == [[1 + 2.5, -1 + 4, 3 + 4]]
    assert progress_returns(values[:, :2]).tolist() == [[1 + 2]]


def test_group_spread_by_hand():
    # Deviations over G - 1 of (1, 3), (0, 0) and (2, 2), (1, 2): sqrt(2), 0, 0, sqrt(1/2); never 0.
    returns = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    found = group_spread(returns, 2)
    wanted = torch.tensor([[2**0.5, 0], [2**0.5, 0], [0, 0.5**0.5], [0, 0.5**0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted + 1e-4, rtol=0, atol=1e-12)


# ---- baselines by score norm, fitted weights -----------------------------------------------------------


@pytest.mark.parametrize("prior", [0.0, 2.5])
def test_the_score_weighted_baseline_against_its_definition(prior):
    generator = torch.Generator().manual_seed(3)
    returns = torch.rand(9, 4, generator=generator, dtype=DOUBLE)
    weight = torch.rand(9, 4, generator=generator, dtype=DOUBLE)
    advantages = score_weighted_baseline(returns, weight, 3, prior)
    for i, t in itertools.product(range(9), range(4)):
        others = [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i]
        rest = [j for j in range(9) if j // 3 != i // 3]
        mean = sum(weight[j, t] * returns[j, t] for j in rest) / sum(weight[j, t] for j in rest)
        kappa = prior * sum(weight[j, t] for j in rest) / len(rest)
        product = sum(weight[j, t] * returns[j, t] for j in others) + kappa * mean
        total = sum(weight[j, t] for j in others) + kappa
        assert float(advantages[i, t]) == pytest.approx(float(returns[i, t] - product / total), abs=1e-6)


def test_where_the_others_are_certain_the_score_weighted_baseline_is_their_mean():
    returns = torch.tensor([[1.0], [0.0], [0.5]], dtype=DOUBLE)
    weight = torch.tensor([[0.7], [0.0], [0.0]])
    # A single group has no others to be drawn towards.
    advantages = score_weighted_baseline(returns, weight, 3, 8.0)
    assert float(advantages[0, 0]) == pytest.approx(1.0 - 0.25)


def test_no_other_constant_leaves_less_variance_than_the_score_weighted_mean():
    """Over many members, E|g|^2 of g = (R - b) s is least at b = E[|s|^2 R] / E[|s|^2]."""
    generator = torch.Generator().manual_seed(4)
    returns = (torch.rand(2000, 1, generator=generator) < 0.3).double()
    # Failures are improbable actions: their scores are the longer ones.
    norm = torch.where(returns > 0, 0.1, 0.9) * torch.rand(2000, 1, generator=generator).double()
    own = score_weighted_baseline(returns, norm, 2000, 8.0)
    least = float((norm * own.square()).mean())
    for constant in (0.0, 0.1, 0.3, 0.5):
        assert least < float((norm * (returns - constant).square()).mean())


def test_fitted_weights_against_a_regression_over_the_other_groups():
    generator = torch.Generator().manual_seed(5)
    final = torch.rand(9, generator=generator, dtype=torch.float64)
    values = 0.5 * final[:, None] + torch.rand(9, 2, generator=generator, dtype=torch.float64)
    norm = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    fitted = fitted_weights(final, values, norm, 3)
    for group, t in itertools.product(range(3), range(2)):
        rows = [i for i in range(9) if i // 3 != group]
        weight = norm[rows, t]
        # Weighted least squares of r on a constant for each group and on v.
        design = torch.stack([values[rows, t], *(torch.tensor([float(i // 3 == g) for i in rows]).double()
                                                 for g in range(3) if g != group)], dim=1)  # fmt: skip
        left = design.T @ (weight[:, None] * design)
        slope = torch.linalg.solve(left, design.T @ (weight * final[rows]))[0]
        assert float(fitted[3 * group, t]) == pytest.approx(min(1.0, max(0.0, float(slope))), abs=1e-9)


def test_values_that_tell_nothing_have_no_weight():
    final = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert not fitted_weights(final, torch.full((4, 3), 0.4, dtype=torch.float64), torch.ones(4, 3), 2).any()
    # A single group has no other to be fitted on.
    assert not fitted_weights(final, final[:, None].expand(4, 3), torch.ones(4, 3), 4).any()
