"""Surrogate objectives and KL estimators, elementwise; whoever calls them aggregates."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KL = Literal["k1", "k2", "k3", "exact"]
KLS = get_args(KL)


def clipped_surrogate(
    log_ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    epsilon: float,
    epsilon_high: float,
) -> Float[Tensor, "*shape"]:
    """``-min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A)`` (PPO, arXiv 1707.06347).

    Where the clip is active, or A is 0, the gradient is 0 however large ``rho`` is, also where it overflows.
    """
    clipped = is_clipped(log_ratio, advantage, epsilon, epsilon_high)
    bound = torch.full_like(log_ratio, 1 - epsilon).masked_fill(advantage > 0, 1 + epsilon_high)
    ratio = log_ratio.masked_fill(clipped | (advantage == 0), 0.0).exp()
    return -torch.where(clipped, bound, ratio) * advantage


def is_clipped(
    log_ratio: Float[Tensor, "*shape"],
    advantage: Float[Tensor, "*shape"],
    epsilon: float,
    epsilon_high: float,
) -> Bool[Tensor, "*shape"]:
    """Where the clip is the active branch, so that the gradient is zero."""
    ratio = log_ratio.detach().exp()
    return ((ratio > 1 + epsilon_high) & (advantage > 0)) | ((ratio < 1 - epsilon) & (advantage < 0))


def kl_estimate(
    kind: KL, logp: Float[Tensor, "*shape"], ref_logp: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Estimators of KL(policy || reference) from samples (Schulman, "Approximating KL divergence").

    With ``d = log ref - log pi``: k1 ``-d``; k2 ``d^2 / 2``; k3 ``exp(d) - 1 - d``. k1 and k3 are unbiased.
    As a loss, the expected gradient on the policy's own samples is that of KL(policy || reference) for k2,
    that of KL(reference || policy) for k3, and zero for k1, which is for measuring.
    """
    d = ref_logp - logp
    match kind:
        case "k1":
            return -d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(d) - d
        case _:
            raise ValueError(f"objective.kl: {kind!r} is not a sample estimator; use k1, k2 or k3")
