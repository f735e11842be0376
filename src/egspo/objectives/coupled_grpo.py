"""coupled-GRPO (DiffuCoder, arXiv 2506.20639): GRPO on likelihoods from complementary pairs of masks.

A completion is shown with all its tokens masked, and for each of P pairs once with a random share t of them
masked and once with exactly the others. Every token is masked, and scored, P + 1 times:

    log pi(o_k | q) ~ 1/(P + 1) [ log f(o_k | q, all masked) + sum_p c_pk log f(o_k | q, o^pk) ]

``o^pk`` being that canvas of pair p in which k is masked, and ``c_pk = 1/t`` or ``1/(1 - t)`` the inverse
rate of its mask, t uniform in [0.2, 0.8]. For the tokens k of N completions, up to and including the end
token, with ``rho_ik`` the ratios of these estimates to those of the policy before the updates and
``A_i = r_i - mean_{j != i} r_j`` over the group,

    L = (1/D) sum_i w_i sum_k [ -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps) A_i) + beta KL_ik ]
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops import noise
from egspo.ops.advantages import Baseline
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_views


class Config(base.EstimateConfig):
    """Settings of coupled-GRPO; those of its optimizer are in the recipe ``objectives/coupled_grpo``."""

    beta: float = Field(
        0.01, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )
    baseline: Baseline = "leave_one_out"
    epsilon: float = Field(0.5, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.5, ge=0, description="clip above")
    num_pairs: int = Field(1, ge=1, description="P, pairs of complementary masks")
    min_mask_rate: float = Field(0.2, gt=0, lt=1, description="least share of tokens that a mask covers")
    max_mask_rate: float = Field(0.8, gt=0, lt=1, description="greatest share")
    mask_weight: Literal["inverse_rate", "one"] = Field(
        "inverse_rate", description="of a log-probability on a partly masked canvas"
    )


class Objective(base.EstimateObjective):
    name = "coupled_grpo"
    description = "token-level GRPO on likelihoods from complementary pairs of masks (DiffuCoder)"
    paper = "arXiv 2506.20639"
    coupled = True
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found, config = super().problems(sampler, train), self.config
        if config.min_mask_rate > config.max_mask_rate:
            found.append(
                f"objective.min_mask_rate: {config.min_mask_rate} exceeds max_mask_rate "
                f"{config.max_mask_rate}; use at most that"
            )
        return found

    def num_views(self, sampler) -> int:
        return 1 + 2 * self.config.num_pairs

    def views(self, trajectory: Trajectory, steps: Steps, advantages: torch.Tensor, iteration: int) -> Views:
        """The canvas with everything masked, then the pairs; weights relative to the first are c."""
        first = torch.ones_like(trajectory.completion_mask)
        masks, factors = [first], [torch.ones_like(trajectory.seeds, dtype=torch.float64)]
        for pair in range(self.config.num_pairs):
            drawn, rate = self._draw(trajectory, iteration * self.config.num_pairs + pair)
            masks += [drawn, ~drawn]
            factors += [1 / rate, 1 / (1 - rate)]
        masked = torch.stack(masks, 1)
        scored = masked & trajectory.completion_mask[:, None]
        weight = torch.stack(factors, 1) if self.config.mask_weight == "inverse_rate" else 1.0
        weight = weight * self.sample_weight(trajectory.completion_mask)[:, None] * scored.any(-1)
        return masked_views(trajectory, masked, scored, weight, advantages[:, 0])

    def estimate(
        self, token_logp: Float[Tensor, "batch views length"], views: Views
    ) -> Float[Tensor, "batch length"]:
        factor = views.weight / views.weight[:, :1]
        num_estimates = (views.weight.shape[1] + 1) // 2
        return (factor[:, :, None] * token_logp).sum(1) / num_estimates

    def _draw(self, trajectory: Trajectory, draw: int) -> tuple[Tensor, Float[Tensor, "batch"]]:
        """A random mask of the completion and the rate it was drawn at."""
        low, high = self.config.min_mask_rate, self.config.max_mask_rate
        rate = low + (high - low) * noise.uniform(trajectory.seeds, noise.VIEWS, 2 * draw, 1)[:, 0]
        uniform = noise.uniform(trajectory.seeds, noise.VIEWS, 2 * draw + 1, trajectory.final.shape[1])
        return uniform < rate[:, None], rate
