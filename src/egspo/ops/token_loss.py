"""The loss that objectives with a ratio for each token have in common."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from egspo.ops.surrogates import clipped_surrogate, is_clipped, kl_estimate
from egspo.types import LossOutput, Scores, Views

TokenKL = Literal["k1", "k2", "k3"]

TOKEN_METRICS = ("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/kl")
"""Keys of the metrics that `clipped_loss` returns."""


def clipped_token_loss(
    scores: Scores,
    reference: Scores | None,
    views: Views,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    kl: TokenKL,
    token_weight: Float[Tensor, "batch views length"] | None = None,
) -> LossOutput:
    """``sum_v w_v sum_i c_i [ -min(rho_i A_v, clip(rho_i) A_v) + beta KL_i ]``, i what view v scores.

    ``rho_i`` is the probability of token i over that of the old policy; without old log-probabilities the
    policy is still the old one. ``c_i`` is 1, or its ``token_weight`` where no choice of positions is scored.
    A drawn choice of positions counts as one token more, outside the KL.
    """
    log_ratio, acted = token_log_ratios(scores, views)
    weight = views.weight[..., None] * acted
    advantage = views.advantages[..., None].expand_as(log_ratio)
    counted = views.scored
    if token_weight is not None:
        weight, counted = weight * token_weight, counted * token_weight
    by_view = None
    if beta:
        by_view = (kl_estimate(kl, scores.token_logp, reference.token_logp) * counted).sum(-1)
    clip = (epsilon, epsilon_high)
    return clipped_loss(log_ratio, advantage, weight, clip, views.weight, by_view, beta)


def clipped_loss(
    log_ratio: Float[Tensor, "*ratios"],
    advantage: Float[Tensor, "*ratios"],
    weight: Float[Tensor, "*ratios"],
    clip: tuple[float, float],
    view_weight: Float[Tensor, "batch views"],
    kl: Float[Tensor, "batch views"] | None,
    beta: float,
) -> LossOutput:
    """``sum weight * -min(rho A, clip(rho) A) + beta sum_v w_v KL_v``, whatever the ratios are of.

    ``clip`` is epsilon below and above; ``kl`` is needed with ``beta`` only. Ratios and views of weight 0 are
    not counted in the metrics (`TOKEN_METRICS`).
    """
    policy = (weight * clipped_surrogate(log_ratio, advantage, *clip)).sum()
    seen, before = weight != 0, log_ratio.detach()
    count = float(seen.sum())
    clipped = is_clipped(before, advantage, *clip) & seen
    loss, total = policy, 0.0
    if beta:
        loss = policy + beta * (view_weight * kl).sum()
        total = float((kl.detach() * (view_weight != 0)).sum())
    metrics = {
        "loss/policy": (float(policy.detach()), 0.0),
        "loss/clip_fraction": (float(clipped.sum()), count),
        "loss/ratio": (float((before.exp() * seen).sum()), count),
        "loss/kl": (total, float((view_weight != 0).sum())),
    }
    return LossOutput(loss, metrics)


def old_token_logp(scores: Scores, views: Views) -> Float[Tensor, "batch views length"]:
    """The policy that sampled; before the first update it is the one that is scored."""
    return scores.token_logp.detach() if views.old_token_logp is None else views.old_token_logp


def token_log_ratios(
    scores: Scores, views: Views
) -> tuple[Float[Tensor, "batch views actions"], Bool[Tensor, "batch views actions"]]:
    """Log-ratio to the old policy at every position, and which of them were acts.

    With drawn position choices there is one column more, for the choice.
    """
    log_ratio = (scores.token_logp - old_token_logp(scores, views)) * views.scored
    if views.order is None:
        return log_ratio, views.scored
    old = scores.position_logp.detach() if views.old_position_logp is None else views.old_position_logp
    drawn = views.scored.any(-1, keepdim=True)
    places = (scores.position_logp - old)[..., None] * drawn
    return torch.cat([log_ratio, places], dim=-1), torch.cat([views.scored, drawn], dim=-1)
