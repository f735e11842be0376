"""Advantages of denoising steps, by hand."""

import math

import pytest
import torch

from egspo.ops.advantages import BASELINES, likelihood_weights, stepwise_returns, subtract_baseline

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
    # tanh(1/2). Second: softmax(1, 0) is (e, 1) / (e + 1), softmax(-1, 0) the reverse: tanh(1/2) again, a
    # shift of the whole group being of no account. Times 2.
    advantages = torch.tensor([[1.0], [-1.0], [2.0], [0.0]], dtype=DOUBLE)
    weights = likelihood_weights(advantages, 2, 0.5)[:, 0]
    assert weights.tolist() == pytest.approx([2 * math.tanh(s / 2) for s in (1, -1, 1, -1)])
    assert torch.count_nonzero(likelihood_weights(torch.full((6, 2), 0.1, dtype=DOUBLE), 3, 2.0)) == 0
