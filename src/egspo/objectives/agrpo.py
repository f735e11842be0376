"""AGRPO (arXiv 2510.04019): exact denoising steps, sampled by their entropy and weighed by its inverse.

A sample's informative steps are 0 … T_i - 1. K draws t_1 … t_K from p_t = (1 - a) H_t / sum H + a / T_i, with
H_t the entropy of step t, and o_t the tokens that step t revealed on its canvas s_t:

    L = (1/N) sum_i c_i (1/K) sum_k (1 / p_{t_k}) sum_{j in o_{t_k}} [
            -min(rho_j A_i, clip(rho_j, 1 - eps, 1 + eps_high) A_i) + beta KL_j ]
    rho_j = pi(o_j | s_t) / pi_old(o_j | s_t)        A_i = r_i - mean r over the group

c_i = 1 / T_i, the mean over the sample's steps, or 1 for their sum. The expectation over the draws is the
loss of all steps. With c_i = 1 and the mean of the *other* members as baseline, minus its gradient at the old
policy is in expectation that of the expected reward, under the rules of remasking for which the score of a
step is exact (docs/method.md). Log-probabilities are of the distribution that was sampled.
"""

from dataclasses import replace
from typing import Literal

from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from egspo.objectives.base import ClipConfig, ClipObjective, OutcomeObjective, SequenceConfig, indivisible
from egspo.ops.selection import draw_steps, entropy_distribution, nonzero_steps
from egspo.types import Steps, Trajectory, Views
from egspo.views import step_views


class Config(ClipConfig, SequenceConfig):
    """Settings of AGRPO; its optimizer's and sampler's are in ``objectives/agrpo``."""

    num_sampled_steps: int = Field(24, ge=1, description="K, draws of a step per sample, with replacement")
    uniform_share: float = Field(
        0.0, ge=0, le=1, description="a, share of the uniform distribution in that by entropy; 1: uniform"
    )
    step_average: Literal["mean", "sum"] = Field(
        "mean", description="over a sample's steps; sum is the policy gradient, mean favours short ones"
    )


class Objective(ClipObjective, OutcomeObjective):
    name = "agrpo"
    description = "exact denoising steps, sampled by entropy with importance weights (AGRPO)"
    paper = "arXiv 2510.04019"
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        return found + indivisible(self.num_views(sampler), "sampled steps", train)

    def num_views(self, sampler) -> int:
        return min(sampler.diffusion_steps, self.config.num_sampled_steps)

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """The steps that were drawn, each once."""
        return nonzero_steps(self._weights(trajectory), self.config.num_sampled_steps)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = step_views(trajectory, steps, advantages)
        weight = self._weights(trajectory).gather(1, steps.index).to(views.weight.dtype)
        return replace(views, weight=views.weight * weight)

    def _weights(self, trajectory: Trajectory) -> Float64[Tensor, "batch steps"]:
        """What each step's loss counts, 0 for those that were not drawn."""
        probability = entropy_distribution(
            trajectory.entropy, trajectory.informative, self.config.uniform_share
        )
        weight = draw_steps(probability, self.config.num_sampled_steps, trajectory.seeds)
        if self.config.step_average == "mean":
            weight = weight / trajectory.informative.sum(1, keepdim=True)
        return weight
