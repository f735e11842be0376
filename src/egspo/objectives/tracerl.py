"""TraceRL (arXiv 2509.06949): the recorded denoising, its steps merged into slices of s.

The slices are S_k = {ks, …, ks + s - 1} for k = 0 … ceil(T/s) - 1, the last one cut off at T. With o_S the
tokens of the completion that slice S revealed, and s_S the state before its first step,

    L = (1 / #S) sum_i sum_{S of i} sum_{j in o_S} [ beta_old KL_j(pi || pi_old) + (1 / |o_S|) (
            -min(rho_j A_i, clip(rho_j, 1 - eps, 1 + eps_high) A_i) + beta KL_j(pi || reference)) ]
    rho_j = pi(o_j | s_S) / pi_old(o_j | s_S)        A_i = (r_i - mean r) / std r over the group

#S counts the slices of the whole batch that reveal something of their completion, of completions with an
advantage; the others are left out altogether. Log-probabilities are untempered. With s = 1 every token is
scored on the canvas on which it was drawn. The value model that the paper adds for some of its runs is not
part of this.
"""

from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives.base import SMALLEST_COUNT, ClipConfig, ClipObjective, SequenceConfig, SliceObjective
from egspo.ops.surrogates import kl_estimate
from egspo.ops.token_loss import TOKEN_METRICS, old_token_logp
from egspo.types import LossOutput, Scores, Steps, Trajectory, Views


class Config(ClipConfig, SequenceConfig):
    """Settings of TraceRL; its optimizer's and sampler's are in ``objectives/tracerl``."""

    scale: Literal["none", "std"] = "std"
    steps_per_slice: int = Field(8, ge=1, description="s, denoising steps merged into one forward pass")
    beta_old: float = Field(0.01, ge=0, description="coefficient of the KL (k3) to the policy of the rollout")


class Objective(ClipObjective, SliceObjective):
    name = "tracerl"
    description = "the recorded trace in slices of several steps (TraceRL)"
    paper = "arXiv 2509.06949"
    metric_keys = (*TOKEN_METRICS, "loss/kl_old")
    Config = Config
    config: Config

    def boundaries(self, num_steps: int) -> list[int]:
        return [*range(0, num_steps, self.config.steps_per_slice), num_steps]

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = self.slices(trajectory, steps, advantages)
        weight = views.weight * (views.advantages != 0) / views.scored.sum(-1).clamp(min=1)
        return replace(views, weight=weight)

    def denominator(self, views: Views) -> float:
        """The number of slices that are trained on."""
        return max(float((views.weight != 0).sum()), SMALLEST_COUNT)

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        output = super().loss(scores, reference, views)
        each = (kl_estimate("k3", scores.token_logp, old_token_logp(scores, views)) * views.scored).sum(-1)
        seen = (views.weight != 0) & (views.advantages != 0)
        weight = views.weight * views.scored.sum(-1)
        loss = output.loss + self.config.beta_old * (weight * each * seen).sum()
        moved = (float((each.detach() * seen).sum()), float(seen.sum()))
        return LossOutput(loss, {**output.metrics, "loss/kl_old": moved})
