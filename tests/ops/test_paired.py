"""Paired intervals and tests against literal computations and known values."""

import math
import random

import pytest
import torch

from egspo.ops.paired import bootstrap_interval, holm, paired_p


def test_the_interval_covers_the_mean_at_its_level():
    """Seeds and problems vary: the interval holds the true mean about 19 times in 20."""
    generator = torch.Generator().manual_seed(0)
    hits, trials = 0, 200
    for trial in range(trials):
        seeds = 0.1 * torch.randn(10, 1, generator=generator)
        problems = 0.5 * torch.randn(1, 60, generator=generator)
        noise = 0.5 * torch.randn(10, 60, generator=generator)
        low, high = bootstrap_interval(0.3 + seeds + problems + noise, draws=400, seed=trial)
        hits += low <= 0.3 <= high
    # Of 200 draws at 95 % fewer than 178 come once in 2,000; the bootstrap is a little wide by design.
    assert hits >= 178


@pytest.mark.parametrize("n", [3, 5])
def test_few_seeds_cover_the_mean_at_its_level_too(n: int):
    """Seeds vary more than problems do, and three or five show their variance badly."""
    generator = torch.Generator().manual_seed(n)
    hits, trials = 0, 400
    for trial in range(trials):
        seeds = 0.1 * torch.randn(n, 1, generator=generator)
        noise = 0.1 * torch.randn(n, 20, generator=generator)
        low, high = bootstrap_interval(0.3 + seeds + noise, draws=400, seed=trial)
        hits += low <= 0.3 <= high
    # 95 % of 400 are 380, -+ 4.4; without Student's t it is 81 % of three seeds and 88 % of five.
    assert 366 <= hits <= 394


def test_seeds_that_differ_widen_the_interval_as_their_mean_varies():
    """Without variation over problems it is Student's of the mean of n values: 2.776 s / sqrt(n) of five."""
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    low, high = bootstrap_interval(values[:, None].expand(5, 40), draws=20_000)
    half = 2.776 * float(values.std()) / math.sqrt(5)
    assert (low, high) == (pytest.approx(0.2 - half, abs=0.02), pytest.approx(0.2 + half, abs=0.02))


def test_equal_verdicts_leave_no_doubt_and_one_seed_no_interval():
    assert bootstrap_interval(torch.full((3, 8), 0.25), draws=100) == (0.25, 0.25)
    assert bootstrap_interval(torch.zeros(1, 8)) is None


def test_the_interval_is_the_same_each_time():
    values = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    assert bootstrap_interval(values, draws=500) == bootstrap_interval(values, draws=500)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # t = 2 with 1 degree of freedom: p = 1 - 2 atan(2) / pi; with 2: p = 1 - t / sqrt(t^2 + 2).
        ([1.0, 3.0], 1 - 2 * math.atan(2) / math.pi),
        ([0.0, 1.0, 2.0], 1 - math.sqrt(3) / math.sqrt(5)),
        ([0.5, 0.5, 0.5], 0.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_p_of_the_paired_t_test(differences, p):
    assert paired_p(differences) == pytest.approx(p, abs=1e-9)
    assert paired_p([-value for value in differences]) == pytest.approx(p, abs=1e-9)


def test_one_pair_has_no_p():
    assert paired_p([0.3]) is None


def test_holm_against_its_definition():
    """Sorted p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j))."""
    values = [random.Random(i).random() ** 3 for i in range(9)]
    ranked = sorted(values)
    expected = {
        p: max(min(1.0, (len(values) - j) * ranked[j]) for j in range(i + 1)) for i, p in enumerate(ranked)
    }
    assert holm(values) == pytest.approx([expected[p] for p in values])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
