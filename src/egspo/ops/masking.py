"""The forward process of masked diffusion: how training data is noised."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor


def stratified_levels(uniform: Float64[Tensor, "batch"], eps: float = 1e-3) -> Float64[Tensor, "batch"]:
    """Noise levels t in [eps, 1], one stratum a sample, so that a batch covers them evenly.

    One shared offset shifts all strata (low-discrepancy sampler of Variational Diffusion Models, arXiv
    2107.00630).
    """
    num = len(uniform)
    t = (torch.arange(num, device=uniform.device, dtype=uniform.dtype) / num + uniform[0]) % 1
    return eps + (1 - eps) * t


def van_der_corput(index: int) -> float:
    """The binary digits of ``index`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ...

    The first 2^n of them are evenly spaced, and any number of them nearly so.
    """
    value, place = 0.0, 0.5
    while index:
        value, index, place = value + place * (index % 2), index // 2, place / 2
    return value


def noise(
    tokens: Int[Tensor, "batch length"],
    level: Float64[Tensor, "batch"],
    uniform: Float64[Tensor, "batch length"],
    mask_token_id: int,
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Each token masked with probability t on its own; returns the noised canvas and what was masked."""
    masked = uniform < level[:, None]
    return torch.where(masked, mask_token_id, tokens), masked


def diffusion_loss(
    logp: Float[Tensor, "batch length"],
    masked: Bool[Tensor, "batch length"],
    level: Float64[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """``(1 / (t L)) sum_{masked i} -log p(x_i | x_t)``, a bound per token (LLaDA, arXiv 2502.09992)."""
    return -(logp * masked).sum(1) / (level * masked.shape[1]).to(logp.dtype)
