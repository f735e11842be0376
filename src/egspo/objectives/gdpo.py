"""GDPO (arXiv 2510.08554): one clipped ratio a completion, of lower bounds by quadrature over time.

For N completions o_i of n_i tokens with advantages A_i, and the Q points t_q and weights w_q of a quadrature
on [0, 1],

    L = (1/N) sum_i [ -(1 / n_i) min(rho_i A_i, clip(rho_i, 1 - eps, 1 + eps_high) A_i) + beta KL_i ]
    rho_i = exp(ELBO_i - ELBO_i,old)                  KL_i = (ELBO_i - ELBO_i,ref)^2 / (2 n_i)
    ELBO_i = sum_q (w_q / t_q) sum_{k in S_iq} log p_iq(k)

S_iq holds each of the completion's tokens with probability t_q on its own. Most of the variance of an ELBO
estimate comes from a random t: at fixed points only the masks are random (semi-deterministic Monte Carlo).
Gauss-Legendre's Q points are exact, in the mean over masks, for completions of up to 2 Q tokens, where the
integrand is a polynomial of degree n - 1 < 2 Q (`egspo.ops.bounds`).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from egspo.objectives import base, espo
from egspo.ops.bounds import gauss_legendre
from egspo.ops.noise import VIEWS, uniform
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_views


class Config(base.SequenceConfig):
    """Settings of GDPO."""

    num_points: int = Field(3, ge=1, description="Q, points of the Gauss-Legendre quadrature over time")
    epsilon: float = Field(0.2, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.2, ge=0, description="clip above")
    kl: Literal["k1", "k2", "k3"] = Field("k2", description="estimator, of the whole bounds")


class Objective(espo.Objective):
    name = "gdpo"
    description = "one clipped ratio a completion, of evidence lower bounds by quadrature over masking rates"
    paper = "arXiv 2510.08554"
    Config = Config
    config: Config

    def num_views(self, sampler) -> int:
        return self.config.num_points

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        tokens, num = trajectory.completion_mask, self.config.num_points
        levels, _ = gauss_legendre(num)
        points = [uniform(trajectory.seeds, VIEWS, iteration * num + q, tokens.shape[1]) for q in range(num)]
        masked = torch.stack([points[q] < levels[q] for q in range(num)], dim=1) & tokens[:, None]
        # An empty mask adds nothing to the bound and costs no forward pass.
        weight = masked.any(-1).double()
        return masked_views(trajectory, masked | ~tokens[:, None], masked, weight, advantages[:, 0])

    def coefficients(self, views: Views) -> Float[Tensor, "batch views"]:
        levels, weights = gauss_legendre(self.config.num_points)
        return (weights / levels).to(views.weight.device).expand(len(views), -1)

    def ratio(
        self, gap: Float[Tensor, "batch"], length: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        return gap, 1 / length.to(gap.dtype)
