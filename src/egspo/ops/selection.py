"""Which denoising steps to train on (EGSPO, arXiv 2603.12554, section on entropy-guided step selection).

What is lost of the policy gradient by keeping a set S of steps is at most ``C sum_{t not in S} H_t``, H_t the
entropy of step t, so for a budget of K steps the K of highest entropy are kept. docs/method.md derives the
constant and says what changes where S depends on the actions.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from egspo.ops.noise import SELECTION, uniform
from egspo.types import Steps

Selection = Literal["top_entropy", "adaptive", "random", "uniform", "all"]
SELECTIONS = get_args(Selection)
Draws = Literal["entropy_sampled", "top_and_sampled", "optimal"]
"""Rules that draw steps at random and weigh each by the inverse of its probability."""


def select_steps(
    rule: Selection,
    num_selected: int,
    entropy: Float[Tensor, "batch steps"],
    eligible: Bool[Tensor, "batch steps"],
    seeds: Int[Tensor, "batch"],
    entropy_left: float = 0.0,
) -> Steps:
    """At most ``num_selected`` of each sample's eligible steps, without replacement.

    Returned in order of preference: ``top_entropy`` and ``adaptive`` from the highest entropy down, the
    others in their own order. ``all`` ignores ``num_selected``; ``adaptive`` stops as soon as what it
    leaves out has at most ``entropy_left`` of the sample's entropy, which bounds what its gradient loses.
    """
    num_steps = entropy.shape[1]
    if rule == "all":
        preference = -torch.arange(num_steps, device=entropy.device, dtype=entropy.dtype).expand_as(entropy)
        num_selected = num_steps
    elif rule == "uniform":
        preference = _evenly_spaced(eligible, num_selected).to(entropy.dtype)
        eligible = eligible & (preference > 0)
    elif rule == "random":
        preference = uniform(seeds, SELECTION, 0, num_steps)
    else:
        preference = entropy
    order = preference.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    index = order[:, :num_selected]
    mask = eligible.gather(1, index)
    if rule == "adaptive":
        mask = mask & _needed(entropy.double() * eligible, index, entropy_left)
    return Steps(index=index.masked_fill(~mask, 0), mask=mask)


def _needed(
    entropy: Float64[Tensor, "batch steps"], index: Int[Tensor, "batch chosen"], entropy_left: float
) -> Bool[Tensor, "batch chosen"]:
    """Whether without a step and those after it more than ``entropy_left`` of the entropy would be left."""
    kept = entropy.gather(1, index)
    before = kept.cumsum(1) - kept
    return before < (1 - entropy_left) * entropy.sum(1, keepdim=True)


def _evenly_spaced(eligible: Bool[Tensor, "batch steps"], num_selected: int) -> Int[Tensor, "batch steps"]:
    """Descending marks on ``num_selected`` steps spread evenly over the eligible ones, 0 elsewhere."""
    count = eligible.sum(1, keepdim=True)
    k = torch.arange(num_selected, device=eligible.device)
    rank = (2 * k + 1) * count // (2 * num_selected)
    wanted = torch.zeros_like(eligible).scatter(1, rank.clamp(max=eligible.shape[1] - 1), True)
    place = eligible.long().cumsum(1) - 1
    chosen = wanted.gather(1, place.clamp(min=0)) & eligible
    return chosen * (eligible.shape[1] - place)


def entropy_distribution(
    entropy: Float[Tensor, "batch steps"],
    eligible: Bool[Tensor, "batch steps"],
    uniform_share: float,
) -> Float64[Tensor, "batch steps"]:
    """``p_t = (1 - a) H_t / sum H + a / T`` over the T eligible steps, ``a`` the ``uniform_share``.

    Every eligible step has a probability above 0, so that weighing by 1 / p_t leaves no step out.
    """
    weight = (entropy.double() + _SMALLEST_ENTROPY) * eligible
    by_entropy = weight / weight.sum(1, keepdim=True).clamp(min=_SMALLEST_ENTROPY)
    evenly = eligible / eligible.double().sum(1, keepdim=True).clamp(min=1)
    return (1 - uniform_share) * by_entropy + uniform_share * evenly


def draw_steps(
    probability: Float64[Tensor, "batch steps"], num_draws: int, seeds: Int[Tensor, "batch"]
) -> Float64[Tensor, "batch steps"]:
    """Importance weights ``n_t / (K p_t)`` of K draws with replacement, n_t how often step t was drawn.

    The draws are stratified: the k-th of K = ``num_draws`` inverts the cumulative probabilities at a uniform
    point of ``[k/K, (k+1)/K)``. Together the strata cover [0, 1) once, so that E[n_t] = K p_t, and a weighted
    sum over steps has the sum over all steps as its expectation, at no more variance than with independent
    draws. AGRPO (arXiv 2510.04019) stratifies over the whole batch; here a sample's draws depend on its own
    seed alone.
    """
    strata = torch.arange(num_draws, device=seeds.device)
    points = (strata + uniform(seeds, SELECTION, 0, num_draws)) / num_draws
    edges = probability.cumsum(1)
    # Rounding may leave the last edge below a point: then the last step that can be drawn is meant.
    last = (probability > 0).long().cumsum(1).argmax(1, keepdim=True)
    drawn = torch.minimum(torch.searchsorted(edges, points, right=True), last)
    times = torch.zeros_like(probability).scatter_add(1, drawn, torch.ones_like(points))
    possible = probability > 0
    return torch.where(possible, times / (num_draws * probability.masked_fill(~possible, 1.0)), 0.0)


def split_draws(
    entropy: Float[Tensor, "batch steps"],
    eligible: Bool[Tensor, "batch steps"],
    uniform_share: float,
    num_steps: int,
    seeds: Int[Tensor, "batch"],
) -> Float64[Tensor, "batch steps"]:
    """Importance weights of the half of ``num_steps`` of highest entropy, kept for certain, and of draws.

    The other half is drawn from the remaining steps by `entropy_distribution`, so that the weighted sum has
    the sum over all steps as its expectation, without the variance of drawing the steps that matter most.
    """
    kept = select_steps("top_entropy", (num_steps + 1) // 2, entropy, eligible, seeds)
    certain = torch.zeros_like(eligible).scatter(1, kept.index, kept.mask)
    rest = eligible & ~certain
    probability = entropy_distribution(entropy, rest, uniform_share)
    drawn = draw_steps(probability, num_steps // 2, seeds) if num_steps > 1 else torch.zeros_like(probability)
    return certain.double() + drawn


def optimal_draws(
    size: Float[Tensor, "batch steps"],
    num_steps: int,
    num_generations: int,
    uniform_share: float,
    seeds: Int[Tensor, "batch"],
) -> Float64[Tensor, "batch steps"]:
    """Importance weights ``1 / p`` of steps drawn with probability ``p = min(1, c size)``, 0 for the others.

    ``size`` is the norm that a step's term of the gradient is expected to have. For a budget of steps, the
    sum of the drawn terms over their probabilities has the least variance if these are proportional to the
    norms (importance sampling; for gradients: Alain et al., arXiv 1511.06481). The whole batch shares its
    budget, ``num_steps`` a sample: ``c`` is such that the p add up to it, or to the number of steps of size
    above 0. ``uniform_share`` of the size is spread evenly over those, against sizes that are wrong. The draw
    is systematic: one uniform number a group, and as many of its steps as their p add up to.
    """
    possible = size > 0
    share = size.double() / size.double().sum().clamp(min=_SMALLEST_SHARE)
    evenly = possible.double() / possible.sum().clamp(min=1)
    share = torch.where(possible, (1 - uniform_share) * share + uniform_share * evenly, 0.0)
    probability = _inclusion(share.flatten(), num_steps * len(size)).view_as(share)
    start = uniform(seeds[::num_generations], SELECTION, 1, 1)
    edges = probability.unflatten(0, (-1, num_generations)).flatten(1).cumsum(1) + start
    drawn = edges.floor() > torch.cat([start, edges[:, :-1]], dim=1).floor()
    drawn = drawn.unflatten(1, (num_generations, -1)).flatten(0, 1) & possible
    return torch.where(drawn, 1 / probability.masked_fill(~drawn, 1.0), 0.0)


def _inclusion(share: Float64[Tensor, "items"], budget: int) -> Float64[Tensor, "items"]:
    """``min(1, c share)`` with c such that they add up to ``budget``, or all 1 if that suffices for all."""
    if int((share > 0).sum()) <= budget:
        return (share > 0).double()
    ranked = share.sort(descending=True).values
    # With the m largest certain, the rest share budget - m: the least m at which none of them exceeds 1.
    after = ranked.flip(0).cumsum(0).flip(0)
    certain = torch.arange(len(share), device=share.device)
    scale = (budget - certain) / after.clamp(min=_SMALLEST_SHARE)
    least = int((scale * ranked <= 1).long().argmax())
    return (scale[least] * share).clamp(max=1.0)


def nonzero_steps(weight: Float[Tensor, "batch steps"], num_selected: int) -> Steps:
    """The steps of weight other than 0 in their own order; each row has at most ``num_selected``."""
    chosen = weight != 0
    order = chosen.long().argsort(dim=1, descending=True, stable=True)[:, :num_selected]
    mask = chosen.gather(1, order)
    return Steps(index=order.masked_fill(~mask, 0), mask=mask)


_SMALLEST_ENTROPY = 1e-8
_SMALLEST_SHARE = 1e-300
