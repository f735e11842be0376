"""d2-StepMerge (arXiv 2509.21474): the recorded denoising cut into N segments of equal length.

Segment n = 0 … N - 1 holds the steps floor(nT/N) … floor((n+1)T/N) - 1. With o_j the tokens of completion i
up to its end, n(j) the segment that revealed o_j, and x_n the state before the first step of segment n,

    L = (1 / sum_i |o_i|) sum_i sum_j [ -min(rho_j A_i, clip(rho_j, 1 - eps, 1 + eps_high) A_i)
        + beta KL_j(pi || reference) ]
    rho_j = pi(o_j | x_n(j)) / pi_old(o_j | x_n(j))        A_i = r_i - mean r over the group

Log-probabilities are untempered. With N = 1 every token is scored on the canvas that is all masked, the
mean-field estimate of diffu-GRPO (which masks some of the prompt besides); with N = T each on the canvas on
which it was drawn.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives.base import SMALLEST_COUNT, ClipConfig, ClipObjective, SequenceConfig, SliceObjective
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_prompt


class Config(ClipConfig, SequenceConfig):
    """Settings of d2-StepMerge; its optimizer's and sampler's are in ``objectives/d2_stepmerge``."""

    num_segments: int = Field(16, ge=1, description="N, forward passes a sample")
    p_mask_prompt: float = Field(
        0.0, ge=0, lt=1, description="share of the prompt's tokens that each pass over a rollout batch masks"
    )
    epsilon: float = Field(0.5, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.5, ge=0, description="clip above")
    beta: float = Field(
        0.04, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )


class Objective(ClipObjective, SliceObjective):
    name = "d2_stepmerge"
    description = "the recorded trajectory cut into N segments (d2-StepMerge)"
    paper = "arXiv 2509.21474"
    Config = Config
    config: Config

    def boundaries(self, num_steps: int) -> list[int]:
        segments = self.config.num_segments
        return [n * num_steps // segments for n in range(segments + 1)]

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        steps, segments = sampler.diffusion_steps, self.config.num_segments
        if segments > steps:
            found.append(
                f"objective.num_segments: {segments} exceeds sampler.diffusion_steps {steps}; "
                f"use at most {steps}"
            )
        return found

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = self.slices(trajectory, steps, advantages)
        if not self.config.p_mask_prompt:
            return views
        hidden = masked_prompt(trajectory, iteration, self.config.p_mask_prompt)
        hidden = torch.cat([hidden, torch.zeros_like(trajectory.completion_mask)], dim=1)
        return replace(views, inputs=views.inputs.masked_fill(hidden[:, None], trajectory.mask_token_id))

    def denominator(self, views: Views) -> float:
        """The number of tokens."""
        return max(float(views.scored.sum()), SMALLEST_COUNT)
