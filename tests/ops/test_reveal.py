"""Schedule and choice of the positions to reveal."""

import math

import pytest
import torch

from egspo.ops.reveal import (
    REMASKING,
    completion_mask,
    last_informative_step,
    position_scores,
    random_order_logp,
    reveal_schedule,
)


@pytest.mark.parametrize(
    ("length", "block", "steps", "expected"),
    [
        (4, 4, 2, [(0, 4, 2), (0, 4, 2)]),
        # 6 over 4 steps: 2, 2, 1, 1.
        (6, 6, 4, [(0, 6, 2), (0, 6, 2), (0, 6, 1), (0, 6, 1)]),
        (6, 3, 4, [(0, 3, 2), (0, 3, 1), (3, 6, 2), (3, 6, 1)]),
        (3, 1, 3, [(0, 1, 1), (1, 2, 1), (2, 3, 1)]),
    ],
)
def test_schedule(length, block, steps, expected):
    assert reveal_schedule(length, block, steps) == expected


# Probabilities of three positions; entropy 0.94, 0.95, 0.69.
PROBABILITIES = [[0.6, 0.3, 0.1], [0.55, 0.4, 0.05], [0.5, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        # Probabilities of the drawn tokens 2, 1, 0: 0.1, 0.4, 0.5.
        ("low_confidence", [2, 1, 0]),
        # Highest probabilities 0.6, 0.55, 0.5.
        ("top_prob", [0, 1, 2]),
        # Entropies 0.898, 0.845, 0.693: the lowest first.
        ("entropy", [2, 1, 0]),
        # 0.6 - 0.3, 0.55 - 0.4, 0.5 - 0.5.
        ("margin", [0, 1, 2]),
        ("left_to_right", [0, 1, 2]),
        ("random", [1, 2, 0]),
        # Top probabilities over 0.05: 12, 11, 10; Gumbel noise of 0.1, 0.9, 0.5: -0.83, 2.25, 0.37.
        ("plackett_luce", [1, 0, 2]),
    ],
)
def test_order_of_positions(rule, order):
    logp = torch.tensor([PROBABILITIES], dtype=torch.float64).log()
    uniform = torch.tensor([[0.1, 0.9, 0.5]], dtype=torch.float64)
    scores = position_scores(rule, logp, torch.tensor([[2, 1, 0]]), uniform, 0.05)
    assert scores.argsort(dim=1, descending=True).tolist() == [order]


@pytest.mark.parametrize("rule", [rule for rule in REMASKING if rule != "low_confidence"])
def test_only_low_confidence_looks_at_the_tokens(rule):
    logp = torch.tensor([PROBABILITIES], dtype=torch.float64).log()
    uniform = torch.tensor([[0.1, 0.9, 0.5]], dtype=torch.float64)
    drawn = [torch.tensor([tokens]) for tokens in ([0, 0, 0], [2, 1, 2])]
    first, second = (position_scores(rule, logp, tokens, uniform, 0.05) for tokens in drawn)
    assert torch.equal(first, second)


def test_plackett_luce_scores_draw_like_the_softmax():
    # Gumbel-max: position i comes first with probability softmax(top probability / position temperature).
    num = 40_000
    logp = torch.tensor(PROBABILITIES, dtype=torch.float64).log().expand(num, 3, 3)
    uniform = torch.rand(num, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = position_scores("plackett_luce", logp, torch.zeros(num, 3, dtype=torch.long), uniform, 0.1)
    share = torch.bincount(scores.argmax(1), minlength=3) / num
    expected = torch.tensor([6.0, 5.5, 5.0]).softmax(0)
    assert share.tolist() == pytest.approx(expected.tolist(), abs=4 * 0.5 / num**0.5)


def test_random_order_logp():
    # Three of five in this order: 1 / (5 * 4 * 3).
    assert random_order_logp(5, 3) == pytest.approx(-math.log(60))


def test_completion_mask_and_last_informative_step():
    final = torch.tensor([[5, 9, 5, 9], [5, 5, 5, 8], [5, 5, 5, 5]])
    mask = completion_mask(final, (8, 9))
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    # Row 0: the first two tokens were revealed at steps 3 and 1, what came at step 4 stands behind the end.
    reveal_step = torch.tensor([[3, 1, 4, 0], [0, 1, 2, 3], [3, 2, 1, 0]])
    assert last_informative_step(reveal_step, mask).tolist() == [3, 3, 3]
    assert last_informative_step(torch.tensor([[0, 1, 2, 3]]), mask[:1]).tolist() == [1]
