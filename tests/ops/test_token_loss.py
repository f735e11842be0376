"""The token-level loss by hand."""

import math

import pytest
import torch

from egspo.ops.token_loss import TOKEN_METRICS, clipped_token_loss, token_log_ratios
from egspo.types import Scores
from handmade import make_views

DOUBLE = torch.float64


def make_scores(views, ratios, places=(1, 1, 1)):
    """Scores under which the scored tokens, and the choices of positions, have these ratios."""
    log = torch.tensor([[[math.log(r) if r else 0.0 for r in row] for row in ratios]], dtype=DOUBLE)
    tokens = (views.old_token_logp + log).requires_grad_()
    return Scores(tokens, views.old_position_logp + torch.tensor([places], dtype=DOUBLE).log())


RATIOS = [[1.25, 1.6, 0], [0, 0, 0.7], [0, 0, 0]]


def loss(views, scores, reference=None, beta=0.0, kl="k3"):
    return clipped_token_loss(scores, reference, views, epsilon=0.2, epsilon_high=0.5, beta=beta, kl=kl)


def test_each_token_has_a_ratio():
    # 1.25, 1.6 (cut at 1.5) times 2; 0.7 (cut at 0.8) times -4; weights 1/2, 1/4.
    views = make_views()
    scores = make_scores(views, RATIOS)
    output = loss(views, scores)
    assert float(output.loss.detach()) == pytest.approx(-(2.5 + 3) / 2 + 3.2 / 4)
    assert output.metrics["loss/policy"] == (pytest.approx(float(output.loss.detach())), 0.0)
    assert output.metrics["loss/ratio"] == (pytest.approx(1.25 + 1.6 + 0.7), 3.0)
    assert output.metrics["loss/clip_fraction"] == (2.0, 3.0)
    assert output.metrics["loss/kl"] == (0.0, 2.0)
    assert set(output.metrics) == set(TOKEN_METRICS)
    (gradient,) = torch.autograd.grad(output.loss, scores.token_logp)
    # Only the first token is not cut: -w A rho.
    assert gradient.flatten().tolist() == pytest.approx([-0.5 * 2 * 1.25] + [0.0] * 8)


@pytest.mark.parametrize(("kl", "of"), [("k1", lambda d: -d), ("k2", lambda d: d * d / 2)])
def test_kl_is_weighed_like_the_tokens(kl, of):
    views = make_views()
    same = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    scores, reference = make_scores(views, same), make_scores(views, [[2, 1, 0], [0, 0, 0.5], [0, 0, 0]])
    output = loss(views, scores, reference, beta=0.1, kl=kl)
    first, second = of(math.log(2)), of(math.log(0.5))
    policy = -(2 + 2) / 2 + 4 / 4
    assert float(output.loss.detach()) == pytest.approx(policy + 0.1 * (first / 2 + second / 4))
    assert output.metrics["loss/kl"] == (pytest.approx(first + second), 2.0)
    assert output.metrics["loss/policy"] == (pytest.approx(policy), 0.0)


def test_without_old_log_probabilities_the_ratio_is_one():
    views = make_views()
    scores = make_scores(views, RATIOS)
    output = loss(make_views(old_token_logp=None, old_position_logp=None), scores)
    assert output.metrics["loss/ratio"] == (3.0, 3.0)
    (gradient,) = torch.autograd.grad(output.loss, scores.token_logp)
    assert gradient[0].tolist() == [[-1, -1, 0], [0, 0, 1], [0, 0, 0]]


def test_a_drawn_choice_of_positions_is_one_token_more():
    drawn = torch.tensor([[[0, 1, -1], [-2, -2, 0], [-2] * 3]])
    for old in (torch.tensor([[-1.0, -0.5, 0.0]], dtype=DOUBLE), None):
        views = make_views(order=drawn, old_position_logp=old)
        given = make_views(old_position_logp=torch.zeros(1, 3, dtype=DOUBLE) if old is None else old)
        scores = make_scores(given, [[1, 1, 0], [0, 0, 1], [0, 0, 0]], places=(1.1, 1, 1))
        choice = 1.1 if old is not None else 1.0
        log_ratio, acted = token_log_ratios(scores, views)
        assert log_ratio.shape == acted.shape == (1, 3, 4)
        assert acted[0, :, 3].tolist() == [True, True, False]
        output = loss(views, scores)
        assert float(output.loss.detach()) == pytest.approx(-(1 + 1 + choice) * 2 / 2 + (1 + 1) * 4 / 4)
        assert output.metrics["loss/ratio"][1] == 5.0
