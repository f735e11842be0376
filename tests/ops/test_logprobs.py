"""The distribution that acts."""

import itertools
import math

import pytest
import torch

from egspo.ops.logprobs import (
    acting_logp,
    draw,
    entropy,
    exact_kl,
    gather_logp,
    low_confidence_logp,
    plackett_luce_logp,
)


def test_acting_logp():
    logits = torch.tensor([1.0, 2.0, 4.0, 3.0])
    # Tokens 0, 1, 3 at temperature 2: exp(0.5), exp(1), exp(1.5) over their sum.
    whole = math.exp(0.5) + math.exp(1.0) + math.exp(1.5)
    expected = [0.5 - math.log(whole), 1.0 - math.log(whole), -math.inf, 1.5 - math.log(whole)]
    assert acting_logp(logits, 2.0, (2,)).tolist() == pytest.approx(expected, abs=1e-6)


def test_acting_logp_at_temperature_0_is_that_of_temperature_1():
    logits = torch.tensor([1.0, 2.0, 4.0])
    assert torch.equal(acting_logp(logits, 0.0, (1,)), acting_logp(logits, 1.0, (1,)))


@pytest.mark.parametrize(
    ("uniform", "token"), [(1e-9, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 3), (0.99, 3), (1 - 1e-16, 3)]
)
def test_draw_inverts_the_cumulative_probabilities(uniform, token):
    # Cumulative: 0.1, 0.3, 0.3, 1.0.
    logp = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64).log()
    assert int(draw(logp, torch.tensor(uniform, dtype=torch.float64))) == token


@pytest.mark.parametrize("ruled_out", [0, 2, 4])
@pytest.mark.parametrize("uniform", [5e-17, 0.2, 0.5, 0.8, 1 - 2**-53, 1.0])
def test_draw_never_takes_what_is_ruled_out(ruled_out, uniform):
    # Probabilities in float32 sum to a little more or less than 1, and even a number that rounds to 1 must
    # not fall behind the last token that is possible.
    logits = torch.randn(2_000, 5, generator=torch.Generator().manual_seed(0))
    logp = acting_logp(logits, 0.7, (ruled_out,))
    drawn = draw(logp, torch.full((2_000,), uniform, dtype=torch.float64))
    assert not (drawn == ruled_out).any() and drawn.max() < 5


def test_entropy():
    logp = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    assert entropy(logp).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)


def test_gather_logp():
    logp = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]]])
    assert gather_logp(logp, torch.tensor([[1, 0]])).tolist() == [[-2.0, -3.0]]


def test_exact_kl_and_its_gradient():
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    logp, other = (
        acting_logp(logits, 1.0, (2,)),
        torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64).log(),
    )
    p = [math.exp(z) / (1 + math.e + math.e**2) for z in (0, 1, 2)]
    kl = sum(a * math.log(a / b) for a, b in zip(p, (0.5, 0.25, 0.25), strict=True))
    value = exact_kl(logp, other)
    assert float(value.detach()) == pytest.approx(kl)
    # d KL / d z_a = p_a (log p_a / q_a - KL), 0 for the token that is ruled out.
    slopes = [a * (math.log(a / b) - kl) for a, b in zip(p, (0.5, 0.25, 0.25), strict=True)]
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.tolist() == pytest.approx([slopes[0], slopes[1], 0.0, slopes[2]])


def test_plackett_luce_by_hand():
    # Candidates 0, 1, 3 with strengths 1, 2, 3; drawn: 3, then 0: (3 / 6) * (1 / 3).
    score = torch.tensor([[1.0, 2.0, 7.0, 3.0]], dtype=torch.float64).log()
    order = torch.tensor([[1, -1, -2, 0]])
    assert float(plackett_luce_logp(score, order).exp()) == pytest.approx(3 / 6 * 1 / 3)


def test_plackett_luce_ordered_draws_sum_to_one():
    score = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = torch.full((12, 4), -1)
    for n, drawn in enumerate(itertools.permutations(range(4), 2)):
        orders[n, list(drawn)] = torch.arange(2)
    assert float(plackett_luce_logp(score.expand(12, 4), orders).exp().sum()) == pytest.approx(1)


def test_plackett_luce_of_rows_with_different_numbers_drawn():
    # Row 0 draws its only candidate, of probability 1; row 1 draws all three, the last with probability 1.
    score = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    logp = plackett_luce_logp(score, torch.tensor([[0, -2, -2], [2, 0, 1]]))
    assert logp.exp().tolist() == pytest.approx([1.0, 1 / 6])
    (gradient,) = torch.autograd.grad(logp.sum(), score)
    # Row 1: drawn, less its share of each draw it took part in.
    expected = [[0, 0, 0], [1 - 1 / 3 - 1 / 2 - 1, 1 - 1 / 3, 1 - 1 / 3 - 1 / 2]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


CONFIDENCE = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.45, 0.35, 0.2], [0.9, 0.06, 0.04]]).log()
TEMPERED = torch.tensor([[0.4, 0.35, 0.25], [0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.8, 0.12, 0.08]]).log()


def test_low_confidence_leaves_less_confident_draws_hidden():
    # Position 1 shows a token of confidence 0.6 and 0 one of 0.5; 3 is no candidate. At 2 anything but
    # more than 0.5 may have been drawn: certain. With 0.3 shown at 0, only the token of 0.2 may.
    order = torch.tensor([[1, 0, -1, -2], [1, 0, -1, -2], [-1, 0, -1, -1]])
    tokens = torch.tensor([[0, 0, 2, 0], [1, 0, 2, 0], [0, 1, 0, 0]])
    found = low_confidence_logp(TEMPERED.expand(3, 4, 3), CONFIDENCE.expand(3, 4, 3), tokens, order)
    # The third shows 0.3 at 1: tokens of 0.2 at 0 (0.3 is not less), of 0.2 at 2, of 0.06 and 0.04 at 3.
    expected = [0.0, math.log(0.25), math.log(0.25 * 0.25 * 0.2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_low_confidence_of_what_another_policy_would_not_have_hidden_is_finite():
    """All tokens of position 3 are more confident than 0.03: the least confident one is counted."""
    confidence = torch.cat([CONFIDENCE, torch.tensor([[0.95, 0.03, 0.02]]).log()])
    tempered = torch.cat([TEMPERED, TEMPERED[:1]])
    order, tokens = torch.tensor([-2, -2, -2, -1, 0]), torch.tensor([0, 0, 0, 0, 1])
    found = low_confidence_logp(tempered, confidence, tokens, order)
    assert float(found) == pytest.approx(math.log(0.08), abs=1e-6)


def test_of_equal_confidences_the_earlier_place_is_revealed():
    """Three places that are certain, one revealed: it must be the first, and then nothing is improbable."""
    certain = torch.tensor([0.0, -40.0, -41.0]).expand(3, 3)
    tokens = torch.zeros(3, dtype=torch.long)
    first, second = torch.tensor([0, -1, -1]), torch.tensor([-1, 0, -1])
    assert float(low_confidence_logp(certain, certain, tokens, first)) == pytest.approx(0.0, abs=1e-6)
    # For the second to be revealed the first must have drawn something else, the third need not.
    expected = math.log(math.exp(-40) + math.exp(-41))
    assert float(low_confidence_logp(certain, certain, tokens, second)) == pytest.approx(expected, rel=1e-6)
