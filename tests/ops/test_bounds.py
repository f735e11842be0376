"""Bounds of the likelihood, against every mask and every order of a completion small enough to write out."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egspo.ops.bounds import (
    draw_count,
    draw_masks,
    draw_subset,
    gauss_legendre,
    mask_weights,
    upper_bound,
)

DOUBLE = torch.float64
NUM = 3


def subsets(num=NUM):
    """All sets of masked positions, as rows of truth values."""
    return [mask for mask in itertools.product([False, True], repeat=num) if any(mask)]


def table(seed=0, num=NUM):
    """``log p(y_k | y outside S)`` of every set and every token in it: any numbers below 0 will do."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: -2 * float(torch.rand((), generator=generator, dtype=DOUBLE))  # noqa: E731
    return {mask: [draw() if hidden else 0.0 for hidden in mask] for mask in subsets(num)}


def over_orders(logp, num=NUM):
    """Log-likelihood of revealing the tokens one by one, for every order."""
    totals = []
    for order in itertools.permutations(range(num)):
        hidden, total = [True] * num, 0.0
        for k in order:
            total += logp[tuple(hidden)][k]
            hidden[k] = False
        totals.append(total)
    return totals


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_draws_average_to_the_mean_over_all_orders(seed):
    logp = table(seed)
    # l ~ U{0..3}, then one of the sets of that size; the empty set adds nothing.
    total = 0.0
    for mask in subsets():
        weight = mask_weights(torch.tensor([[mask]]), torch.tensor([NUM]))
        probability = 1 / (NUM + 1) / math.comb(NUM, sum(mask))
        total += probability * float(weight) * sum(logp[mask])
    assert total == pytest.approx(mean(over_orders(logp)), abs=1e-12)
    # A bound: the likelihood of a random order is no less.
    assert total <= math.log(mean([math.exp(value) for value in over_orders(logp)]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_points", "exact"), [(1, False), (2, True), (3, True)])
def test_quadrature_over_all_masks_is_the_same_bound(seed, num_points, exact):
    # E_{S ~ t} [f(S) / t] is a polynomial of degree n - 1 = 2 in t: two points integrate degree 3.
    logp = table(seed)
    total = 0.0
    for t, w in zip(*gauss_legendre(num_points), strict=True):
        for mask in subsets():
            probability = t ** sum(mask) * (1 - t) ** (NUM - sum(mask))
            total += float(w / t * probability) * sum(logp[mask])
    assert (total == pytest.approx(mean(over_orders(logp)), abs=1e-12)) == exact


@pytest.mark.parametrize("num_points", range(1, 8))
def test_quadrature_is_exact_up_to_its_degree(num_points):
    points, weights = gauss_legendre(num_points)
    assert bool(((points > 0) & (points < 1) & (weights > 0)).all())
    for degree in range(2 * num_points + 2):
        exact = float((weights * points**degree).sum()) == pytest.approx(1 / (degree + 1), abs=1e-13)
        assert exact == (degree < 2 * num_points)


def test_two_points_are_the_textbook_ones():
    points, weights = gauss_legendre(2)
    assert points.tolist() == pytest.approx([0.5 - 1 / 12**0.5, 0.5 + 1 / 12**0.5])
    assert weights.tolist() == pytest.approx([0.5, 0.5])


def test_counts_are_equally_likely_and_within_bounds():
    points = (torch.arange(1200, dtype=DOUBLE) + 0.5) / 1200
    counts = draw_count(points, 1, torch.full((1200,), 4))
    assert torch.bincount(counts).tolist() == [0, 300, 300, 300, 300]
    # The largest number that the noise gives rounds up here: 257 (1 - 2^-53) is 257 in double precision.
    assert draw_count(torch.tensor([1 - 2**-53], dtype=DOUBLE), 0, torch.tensor([256])).tolist() == [256]


@given(st.integers(0, 2**31), st.integers(0, 5), st.booleans(), st.integers(1, 3))
def test_draws_mask_eligible_positions_and_complements_the_rest(seed, iteration, complement, num_draws):
    eligible = torch.tensor([[True, True, False, True], [True, False, False, False]])
    seeds = torch.tensor([seed, seed + 1])
    masks = draw_masks(seeds, eligible, iteration, num_draws, complement)
    assert masks.shape == (2, num_draws * (1 + complement), 4)
    assert not bool((masks & ~eligible[:, None]).any())
    if complement:
        pairs = masks.unflatten(1, (num_draws, 2))
        assert torch.equal(pairs[:, :, 0] ^ pairs[:, :, 1], eligible[:, None].expand(-1, num_draws, -1))
    # A row's draws are its own, whatever stands beside it.
    assert torch.equal(draw_masks(seeds[1:], eligible[1:], iteration, num_draws, complement), masks[1:])


def test_every_set_is_drawn_as_often_as_its_size_says():
    num = 40_000
    eligible = torch.tensor([[True, False, True, True]]).expand(num, -1)
    for masks in draw_masks(torch.arange(num), eligible, 0, 1, True).unbind(1):
        code = (masks[:, [0, 2, 3]] * torch.tensor([4, 2, 1])).sum(1)
        share = torch.bincount(code, minlength=8) / num
        for index, mask in enumerate(itertools.product([False, True], repeat=3)):
            # Four sizes, then one of the sets of that size; 0.01 is 4 standard deviations and more.
            assert float(share[index]) == pytest.approx(1 / 4 / math.comb(3, sum(mask)), abs=0.01)


def test_iterations_and_draws_differ():
    eligible = torch.ones(1, 64, dtype=torch.bool)
    first, second = (draw_masks(torch.tensor([7]), eligible, i, 2, False) for i in (0, 1))
    rows = [*first[0].tolist(), *second[0].tolist()]
    assert len({tuple(row) for row in rows}) == 4


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 2**31))
def test_a_subset_has_its_size(eligible, seed):
    eligible = torch.tensor([eligible])
    points = torch.rand(1, eligible.shape[1], generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    for count in range(int(eligible.sum()) + 1):
        subset = draw_subset(eligible, torch.tensor([count]), points)
        assert int(subset.sum()) == count and not bool((subset & ~eligible).any())


# ---- the upper bound ---------------------------------------------------------------------------------------


def views(logp, masks):
    token_logp = torch.tensor([[logp[mask] for mask in masks]], dtype=DOUBLE)
    return token_logp, torch.tensor([masks])


def test_upper_bound_is_the_formula():
    logp, power = table(5), 1.5
    masks = [(True, False, False), (True, True, False)]
    # Levels 1/3 and 2/3; the last token is in no set and counts nowhere.
    total = 0.0
    for k in (0, 1):
        inner = sum(3 / sum(S) * math.exp(power * logp[S][k]) * S[k] for S in masks) / 2
        total += math.log(inner)
    token_logp, masked = views(logp, masks)
    value = upper_bound(token_logp.requires_grad_(), masked, torch.tensor([3]), power)
    assert float(value.detach()) == pytest.approx(total / power / 2, abs=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), token_logp)
    assert bool(gradient.isfinite().all()) and not bool(gradient[~masked].any())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_upper_bound_of_all_masks_is_above_the_lower_one(seed, power):
    # l ~ U{1..3}, then one of its sets: 2 views of each set of one or two tokens and 6 of all three.
    logp = table(seed)
    masks = [mask for mask in subsets() for _ in range(18 // (3 * math.comb(NUM, sum(mask))))]
    token_logp, masked = views(logp, masks)
    upper = float(upper_bound(token_logp, masked, torch.tensor([NUM]), power))
    assert upper * NUM >= mean(over_orders(logp))
    higher = float(upper_bound(token_logp, masked, torch.tensor([NUM]), power + 0.5))
    assert higher >= upper


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_both_bounds_are_tight_if_nothing_depends_on_what_is_seen(power):
    alone = [-1.0, -0.5, -2.0]
    logp = {mask: [alone[k] * hidden for k, hidden in enumerate(mask)] for mask in subsets()}
    masks = [mask for mask in subsets() for _ in range(18 // (3 * math.comb(NUM, sum(mask))))]
    token_logp, masked = views(logp, masks)
    assert float(upper_bound(token_logp, masked, torch.tensor([NUM]), power)) * NUM == pytest.approx(
        sum(alone)
    )
    assert mean(over_orders(logp)) == pytest.approx(sum(alone))
