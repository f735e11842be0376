"""diffu-GRPO (d1, arXiv 2504.12216): GRPO on a mean-field likelihood that takes one forward pass.

The completion is masked as a whole, each token of the prompt with probability p, anew for each pass over a
rollout batch, and every token is scored from that one canvas:

    log pi(o_k | q) ~ log f(o_k | q', [MASK] ... [MASK])

For the tokens k of G completions o_i, up to and including the end token, with ``rho_ik`` their ratios to the
policy before the updates and ``A_i = r_i - mean_j r_j`` over the group,

    L = (1/D) sum_i w_i sum_k [ -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps) A_i) + beta KL_ik ]

The tokens are scored as if they were independent given the prompt: the estimate is of another distribution
than the one that denoised, and its gradient is not that of the expected reward (docs/method.md).
"""

import torch
from pydantic import Field

from egspo.objectives import base
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_prompt, masked_views


class Config(base.EstimateConfig):
    """Settings of diffu-GRPO; those of its optimizer are in the recipe ``objectives/diffu_grpo``."""

    beta: float = Field(
        0.04, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )
    epsilon: float = Field(0.5, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.5, ge=0, description="clip above")
    p_mask_prompt: float = Field(0.15, ge=0, le=1, description="probability that a prompt token is masked")


class Objective(base.EstimateObjective):
    name = "diffu_grpo"
    description = "token-level GRPO on a one-step mean-field likelihood with masked prompts (d1)"
    paper = "arXiv 2504.12216"
    Config = Config
    config: Config

    def num_views(self, sampler) -> int:
        return 1

    def views(self, trajectory: Trajectory, steps: Steps, advantages: torch.Tensor, iteration: int) -> Views:
        scored = trajectory.completion_mask[:, None]
        return masked_views(
            trajectory,
            masked=torch.ones_like(scored),
            scored=scored,
            weight=self.sample_weight(trajectory.completion_mask)[:, None],
            advantages=advantages[:, 0],
            prompt_masked=masked_prompt(trajectory, iteration, self.config.p_mask_prompt)[:, None],
        )
