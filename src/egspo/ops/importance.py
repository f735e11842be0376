"""Importance weights of actions that were sampled from another distribution than the policy."""

from jaxtyping import Float
from torch import Tensor


def truncated_weights(log_weight: Float[Tensor, "*shape"], cap: float) -> Float[Tensor, "*shape"]:
    """``min(exp(log pi - log mu), cap)`` (truncated importance sampling, Ionides, JCGS 17(2), 2008).

    Without truncation (``cap = inf``) and with the ratios of a whole trajectory multiplied, an average over
    mu's samples is an unbiased estimate of one over pi's. A cap bounds the variance and biases.
    """
    return log_weight.exp().clamp(max=cap)


def effective_sample_size(mean: float, mean_square: float) -> float:
    """``mean(w)^2 / mean(w^2)``: the share of the samples that equal weights would need (Kish, 1965)."""
    return mean**2 / mean_square
