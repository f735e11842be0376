"""Clipped surrogate and KL estimators."""

import math

import pytest
import torch

from egspo.ops.surrogates import clipped_surrogate, is_clipped, kl_estimate


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        # Within [0.8, 1.5]: -ratio * A, whose derivative by the log-ratio is itself.
        (1.0, 2.0, -2.0, -2.0),
        (1.4, 2.0, -2.8, -2.8),
        # Above, and worth more of: cut at 1.5. Worth less of: not cut.
        (1.6, 2.0, -3.0, 0.0),
        (1.6, -2.0, 3.2, 3.2),
        # Below, and worth less of: cut at 0.8. Worth more of: not cut.
        (0.7, -2.0, 1.6, 0.0),
        (0.7, 2.0, -1.4, -1.4),
        (1.6, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate(ratio, advantage, value, slope):
    log_ratio = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    a = torch.tensor(advantage, dtype=torch.float64)
    loss = clipped_surrogate(log_ratio, a, 0.2, 0.5)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert float(loss.detach()) == pytest.approx(value)
    assert float(gradient) == pytest.approx(slope)
    assert bool(is_clipped(log_ratio.detach(), a, 0.2, 0.5)) == (slope == 0 and advantage != 0)


@pytest.mark.parametrize("advantage", [2.0, 0.0])
def test_a_ratio_that_overflows_has_no_gradient_where_it_does_not_count(advantage):
    log_ratio = torch.tensor(200.0, requires_grad=True)  # its exponential is infinite in float32
    loss = clipped_surrogate(log_ratio, torch.tensor(advantage), 0.2, 0.5)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert (float(loss.detach()), float(gradient)) == (-1.5 * advantage, 0.0)


def test_kl_estimates_by_hand():
    # d = log 0.2 - log 0.4 = -log 2: k1 log 2, k2 (log 2)^2 / 2, k3 1/2 - 1 + log 2.
    logp, ref_logp = torch.tensor([0.4]).log(), torch.tensor([0.2]).log()
    for kind, value in {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 1 / 2}.items():
        assert float(kl_estimate(kind, logp, ref_logp)) == pytest.approx(value)


P, Q = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)


def expected(kind):
    """Expectation over the policy's own samples of the estimate, and of its gradient by the logits."""
    logits = torch.tensor(P, dtype=torch.float64).log().requires_grad_()
    estimates = kl_estimate(kind, logits.log_softmax(0), torch.tensor(Q, dtype=torch.float64).log())
    mean = (torch.tensor(P, dtype=torch.float64) * estimates).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return float(mean.detach()), gradient.tolist()


def test_k1_and_k3_are_unbiased():
    kl = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))
    assert expected("k1")[0] == pytest.approx(kl)
    assert expected("k3")[0] == pytest.approx(kl)


def test_what_the_estimates_pull_at_as_losses():
    # k1: nothing. k2: KL(policy || reference), slope p (log p / q - KL). k3: KL(reference || policy).
    kl = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))
    assert expected("k1")[1] == pytest.approx([0, 0, 0], abs=1e-12)
    assert expected("k2")[1] == pytest.approx([p * (math.log(p / q) - kl) for p, q in zip(P, Q, strict=True)])
    assert expected("k3")[1] == pytest.approx([p - q for p, q in zip(P, Q, strict=True)])


def test_exact_is_no_estimate():
    with pytest.raises(ValueError, match=r"objective\.kl: 'exact'"):
        kl_estimate("exact", torch.zeros(1), torch.zeros(1))
