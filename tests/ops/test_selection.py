"""Which steps are trained on."""

import pytest
import torch

from egspo.ops.selection import SELECTIONS, select_steps

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
