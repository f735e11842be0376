"""Advantages of denoising steps. All in float64: a group of equal rewards must come out as exactly zero."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Baseline = Literal["same_rank", "same_step", "leave_one_out", "batch", "none"]
BASELINES = get_args(Baseline)

DOUBLE = torch.float64
_ROUNDING = 1e-9
_SMALLEST_SPREAD = 1e-4
_CERTAIN = 1e-9


def stepwise_returns(
    final: Float[Tensor, "batch"],
    step_values: Float[Tensor, "batch chosen"],
    weight: Float[Tensor, "batch chosen"],
    normalise: bool,
) -> Float64[Tensor, "batch chosen"]:
    """``(1 + lambda_t) r(x_0) - lambda_t r(xhat_t)``, divided by ``1 + lambda_t`` if ``normalise``.

    EGSPO-SA (arXiv 2603.12554): ``r(xhat_t)``, the reward of the greedy one-step completion of state t,
    stands for the state's value; it depends on the state alone, so it is a baseline and adds no bias.
    """
    weight = weight.double()
    returns = (1 + weight) * final.double()[:, None] - weight * step_values.double()
    return returns / (1 + weight) if normalise else returns


def subtract_baseline(
    returns: Float64[Tensor, "batch chosen"],
    mask: Bool[Tensor, "batch chosen"],
    num_generations: int,
    baseline: Baseline,
) -> Float64[Tensor, "batch chosen"]:
    """Returns less their baseline, 0 where ``mask`` is False.

    ``same_rank`` and ``same_step`` take the mean over the group's members (itself included, which scales the
    expected gradient by ``1 - 1/G``) of the same column: of the k-th chosen step, as published, or of the
    same denoising step, depending on what the columns are. ``leave_one_out`` leaves the sample itself out,
    ``batch`` takes the mean over the whole batch.
    """
    groups = returns.masked_fill(~mask, 0.0).unflatten(0, (-1, num_generations))
    counts = mask.double().unflatten(0, (-1, num_generations))
    if baseline == "none":
        mean = torch.zeros_like(groups)
    elif baseline == "batch":
        mean = (groups.sum() / counts.sum().clamp(min=1)).expand_as(groups)
    elif baseline == "leave_one_out":
        others = (groups.sum(1, keepdim=True) - groups) / (counts.sum(1, keepdim=True) - counts).clamp(min=1)
        mean = others
    else:
        mean = groups.sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
    advantages = (groups - mean).flatten(0, 1)
    return advantages.masked_fill(~mask | (advantages.abs() < _ROUNDING), 0.0)


def score_weighted_baseline(
    returns: Float64[Tensor, "batch steps"],
    score_norm: Float[Tensor, "batch steps"],
    num_generations: int,
    prior: float,
) -> Float64[Tensor, "batch steps"]:
    """Returns less ``b_i = (sum_{j != i} w_j R_j + k b_rest) / (sum_{j != i} w_j + k)``, step by step.

    With w the squared norms of the scores, ``E[w R] / E[w]`` is the constant that leaves the estimate
    ``(R - b) grad log pi`` the least variance (Greensmith, Bartlett and Baxter, JMLR 5, 2004). It is
    estimated from the group's other members, of which there are few, and therefore drawn towards ``b_rest``,
    the same mean over all other groups, as if that had been seen ``prior`` times (k is ``prior`` mean
    weights). The sample's own action does not enter its baseline, so that nothing is biased.
    """
    weight = score_norm.double().unflatten(0, (-1, num_generations)) + _CERTAIN
    groups = returns.unflatten(0, (-1, num_generations))
    # Sums over the others as such: less the own term of a whole sum, small weights would drown in rounding.
    members, peers = (
        1 - torch.eye(n, dtype=torch.float64, device=returns.device) for n in weight.shape[1::-1]
    )
    product, num_groups = weight * groups, len(weight)
    rest = torch.einsum("gh,hit->gt", peers, product), torch.einsum("gh,hit->gt", peers, weight)
    kappa = prior * rest[1] / max(1, (num_groups - 1) * num_generations)
    mean = rest[0] / rest[1].clamp(min=_CERTAIN)
    others = (members @ product + (kappa * mean)[:, None]) / (members @ weight + kappa[:, None])
    advantages = (groups - others).flatten(0, 1)
    return advantages.masked_fill(advantages.abs() < _ROUNDING, 0.0)


def fitted_weights(
    final: Float[Tensor, "batch"],
    step_values: Float64[Tensor, "batch steps"],
    score_norm: Float[Tensor, "batch steps"],
    num_generations: int,
) -> Float64[Tensor, "batch steps"]:
    """The lambda_t in [0, 1] by which a one-step reward is best subtracted from the reward, for each group.

    The control variate ``r - lambda_t v_t`` leaves ``(r - lambda_t v_t - b) grad log pi`` the least variance
    at the coefficient of the regression of r on v_t within groups, weighted by squared score norms. It is
    fitted on all groups but the sample's own, and so does not depend on what the sample did.
    """
    weight = score_norm.double().unflatten(0, (-1, num_generations))
    rewards = final.double()[:, None].expand_as(step_values).unflatten(0, (-1, num_generations))
    values = step_values.unflatten(0, (-1, num_generations))
    total = weight.sum(1, keepdim=True).clamp(min=_CERTAIN)
    rewards = rewards - (weight * rewards).sum(1, keepdim=True) / total
    values = values - (weight * values).sum(1, keepdim=True) / total
    both, own = (weight * rewards * values).sum(1), (weight * values.square()).sum(1)
    both, own = both.sum(0) - both, own.sum(0) - own
    fitted = torch.where(own > _ROUNDING, both / own.clamp(min=_ROUNDING), 0.0).clamp(0, 1)
    return fitted.repeat_interleave(num_generations, dim=0)


def likelihood_weights(
    advantages: Float64[Tensor, "batch chosen"], num_generations: int, psi: float
) -> Float64[Tensor, "batch chosen"]:
    """``G (w+ - w-)`` with ``w+- = softmax(+-psi A)`` over the group of G, exactly 0 where they cancel.

    wd1 (arXiv 2507.08838) raises log-likelihoods by ``w+`` and lowers them by ``w-``. Times G, so that a mean
    over samples is the paper's sum over a group, averaged over groups; near A = 0 it is
    ``2 psi (A - mean A)``.
    """
    groups = psi * advantages.unflatten(0, (-1, num_generations))
    weights = num_generations * (groups.softmax(1) - (-groups).softmax(1)).flatten(0, 1)
    return weights.masked_fill(weights.abs() < _ROUNDING, 0.0)


def progress_returns(values: Float64[Tensor, "batch values"]) -> Float64[Tensor, "batch steps"]:
    """What each step gained, and the mean of what came after it, from the values of the T + 1 states.

    MDPO (arXiv 2508.13148): ``R_t = v_{t+1} - v_t + mean_{t+1 < k <= T} v_k`` for t = 0 … T - 1, with v_T in
    place of the empty mean of the last step.
    """
    gained = values[:, 1:] - values[:, :-1]
    after = values[:, 2:].flip(1).cumsum(1)
    counts = torch.arange(1, after.shape[1] + 1, device=values.device)
    later = (after / counts).flip(1)
    return gained + torch.cat([later, values[:, -1:]], dim=1)


def equal_groups(rewards: Float[Tensor, "batch"], num_generations: int) -> Bool[Tensor, "batch"]:
    """Completions of groups whose members all earned the same."""
    groups = rewards.unflatten(0, (-1, num_generations))
    return (groups.amax(1) - groups.amin(1) < _ROUNDING).repeat_interleave(num_generations)


def group_spread(
    returns: Float64[Tensor, "batch chosen"], num_generations: int
) -> Float64[Tensor, "batch chosen"]:
    """Standard deviation over the group (its members less one below), and a little, so that none is 0."""
    spread = returns.unflatten(0, (-1, num_generations)).std(1)
    return spread.repeat_interleave(num_generations, dim=0) + _SMALLEST_SPREAD
