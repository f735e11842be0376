"""JustGRPO (arXiv 2601.15165): GRPO as for autoregressive models, on completions denoised from left to right.

With one token a step, token k of completion i is drawn on the canvas that shows the tokens before it and
masks all that follow; its log-probability there is exact. Over the |o_i| tokens up to the end of each
completion, on canvases of length L,

    loss = 1 / (L N') sum_i sum_{k < |o_i|} [
               -min(rho_k A_i, clip(rho_k, 1 - eps, 1 + eps_high) A_i) + beta KL_k ]
    rho_k = pi(o_k | o_<k, [MASK]…) / pi_old(o_k | o_<k, [MASK]…)        A_i = (r_i - mean r) / std r

with the mean and std of the group. N' counts the completions with an advantage other than 0 (all of them with
a KL term, beta > 0).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from egspo.objectives.base import (
    SMALLEST_COUNT,
    ClipConfig,
    ClipObjective,
    OutcomeObjective,
    SequenceConfig,
    indivisible,
)
from egspo.ops.selection import select_steps
from egspo.types import Steps, Trajectory, Views
from egspo.views import step_views


class Config(ClipConfig, SequenceConfig):
    """Settings of JustGRPO; its optimizer's and sampler's are in ``objectives/just_grpo``."""

    scale: Literal["none", "std"] = "std"


class Objective(ClipObjective, OutcomeObjective):
    name = "just_grpo"
    description = "token-level GRPO on completions denoised from left to right (JustGRPO)"
    paper = "arXiv 2601.15165"
    requires: ClassVar[Mapping[str, Any]] = {"remasking": "left_to_right"}
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        steps, length = sampler.diffusion_steps, sampler.max_completion_length
        if steps != length:
            found.append(
                f"sampler.diffusion_steps: {steps}, but just_grpo is defined with one token a step; set "
                f"sampler.diffusion_steps={length}"
            )
        return found + indivisible(steps, "steps", train)

    def num_views(self, sampler) -> int:
        return sampler.diffusion_steps

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """Every step up to the end of the text."""
        return select_steps("all", 0, trajectory.entropy, trajectory.informative, trajectory.seeds)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = step_views(trajectory, steps, advantages)
        return replace(views, weight=views.weight / trajectory.final.shape[1])

    def denominator(self, views: Views) -> float:
        """The number of completions with something to train on."""
        return max(float(self.active(views).any(1).sum()), SMALLEST_COUNT)
