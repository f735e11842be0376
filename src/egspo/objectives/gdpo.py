"""GDPO (arXiv 2510.08554): one clipped ratio a completion, of lower bounds by quadrature over time.

For N completions o_i of n_i tokens with advantages A_i, and the Q points t_q and weights w_q of a quadrature
on [0, 1],

    L = (1/N) sum_i [ -min(rho_i A_i, clip(rho_i, 1 - eps, 1 + eps_high) A_i) + beta KL_i ]
    rho_i = exp((ELBO_i - ELBO_i,old) / n_i)          KL_i = (ELBO_i - ELBO_i,ref)^2 / (2 n_i)
    ELBO_i = sum_q (w_q / t_q) sum_{k in S_iq} log p_iq(k)

S_iq holds each of the completion's tokens with probability t_q on its own, or ``max(1, floor(t_q n_i))`` of
them. Most of the variance of an ELBO estimate comes from a random t: at fixed points only the masks are
random (semi-deterministic Monte Carlo). With independent masks Gauss-Legendre's Q points are exact in the
mean for completions of up to 2 Q tokens, where the integrand is a polynomial of degree n - 1 < 2 Q
(`egspo.ops.bounds`); counted masks vary less, but are off by what the floor cuts away, and no completion is
ever masked whole: of a short one too much is always shown.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from egspo.objectives import base, espo
from egspo.ops.bounds import draw_subset, gauss_legendre
from egspo.ops.noise import VIEWS, uniform
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_views


class Config(base.SequenceConfig):
    """Settings of GDPO."""

    num_points: int = Field(3, ge=1, description="Q, points of the Gauss-Legendre quadrature over time")
    masks: Literal["counted", "independent"] = Field(
        "independent", description="each token with probability t; or t n of n, rounded down, at least one"
    )
    ratio: Literal["token", "completion"] = Field(
        "token", description="of a token, in the geometric mean; or of the whole completion, divided by n"
    )
    epsilon: float = Field(0.5, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.5, ge=0, description="clip above")
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
        points = [uniform(trajectory.seeds, VIEWS, iteration * num + q, tokens.shape[1]) for q in range(num)]
        levels = gauss_legendre(num)[0].tolist()
        drawn = [self._draw(tokens, *each) for each in zip(levels, points, strict=True)]
        masked = torch.stack(drawn, dim=1)
        # An empty mask adds nothing to the bound and costs no forward pass.
        weight = masked.any(-1).double()
        return masked_views(trajectory, masked | ~tokens[:, None], masked, weight, advantages[:, 0])

    def _draw(
        self, tokens: Bool[Tensor, "batch length"], level: float, points: Float64[Tensor, "batch length"]
    ) -> Bool[Tensor, "batch length"]:
        if self.config.masks == "independent":
            return tokens & (points < level)
        # A point such as 1/2 comes out of an eigenvalue problem a little less than it is.
        count = (level * tokens.sum(1) + 1e-9).long().clamp(min=1)
        return draw_subset(tokens, count, points)

    def coefficients(self, views: Views) -> Float[Tensor, "batch views"]:
        levels, weights = gauss_legendre(self.config.num_points)
        return (weights / levels).to(views.weight.device).expand(len(views), -1)

    def ratio(
        self, gap: Float[Tensor, "batch"], length: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        if self.config.ratio == "token":
            return super().ratio(gap, length)
        return gap, 1 / length.to(gap.dtype)
