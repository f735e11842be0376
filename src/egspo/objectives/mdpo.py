"""MDPO (arXiv 2508.13148): every step is rewarded, by a one-step completion, and compared at the same time.

Let r_t be the reward of the greedy one-step completion of the state that step t = 0 … T - 1 leads to, r_{T-1}
that of the completion itself, and r_{-1} that of the initial state. Step t is worth what it gained and what
came after it,

    R_t = (r_t - r_{t-1}) + (1 / (T - 1 - t)) sum_{t < k < T} r_k
    R_{T-1} = (r_{T-1} - r_{T-2}) + r_{T-1}
    A_t = (R_t - mean R_t) / std R_t over the group, at the same t

A group trains on the K steps S with the largest sum of |A_t|, over its members that still have text to
reveal. With o_t the tokens that step t revealed on its canvas s_t, of whose L positions m_t are masked,

    loss = (1/N) sum_i sum_{t in S} (1 / |o_t|) sum_{j in o_t} [
               -(L / m_t) min(rho_j A_t, clip(rho_j, 1 - eps, 1 + eps_high) A_t) + beta KL_j ]
    rho_j = pi(o_j | s_t) / pi_old(o_j | s_t)

Log-probabilities are of the distribution that was sampled.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from egspo.objectives.base import ClipConfig, ClipObjective
from egspo.ops.advantages import group_spread, progress_returns, subtract_baseline
from egspo.ops.selection import nonzero_steps, select_steps
from egspo.ops.token_loss import TokenKL
from egspo.types import Proxy, Rewards, Steps, Trajectory, Views
from egspo.views import step_views


class Config(ClipConfig):
    """Settings of MDPO; its optimizer's and sampler's are in ``objectives/mdpo``."""

    num_selected_steps: int = Field(8, ge=1, description="K, steps trained on per group")
    masked_weight: bool = Field(True, description="weigh a step by L / m_t, as the diffusion loss does")
    beta: float = Field(
        0.02, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )
    kl: TokenKL = "k2"


class Objective(ClipObjective):
    name = "mdpo"
    description = "a reward for every step by its one-step completion (MDPO)"
    paper = "arXiv 2508.13148"
    proxy = Proxy()
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        steps, chosen = sampler.diffusion_steps, self.config.num_selected_steps
        if chosen > steps:
            found.append(
                f"objective.num_selected_steps: {chosen} exceeds sampler.diffusion_steps {steps}; "
                f"use at most {steps}"
            )
        if train.update_split == "steps" and chosen % train.updates_per_rollout:
            found.append(
                f"train.updates_per_rollout: {train.updates_per_rollout} does not divide "
                f"the {chosen} selected steps"
            )
        return found

    def num_views(self, sampler) -> int:
        return min(sampler.diffusion_steps, self.config.num_selected_steps)

    def candidates(self, trajectory: Trajectory) -> Steps:
        return select_steps("all", 0, trajectory.entropy, trajectory.informative, trajectory.seeds)

    def advantages(self, rewards: Rewards) -> Float64[Tensor, "batch steps"]:
        """0 at the steps that the sample's group does not train on."""
        final = rewards.final.double()[:, None]
        known = rewards.candidates
        # Behind the last candidate nothing changes the text any more: its value is the completion's.
        values = final.repeat(1, rewards.num_steps + 1)
        at = known.index.masked_fill(~known.mask, rewards.num_steps)
        earned = torch.where(known.mask, rewards.step_values.double(), final)
        values = values.scatter(1, at, earned)
        returns, group = progress_returns(values), rewards.num_generations
        compared = torch.ones_like(returns, dtype=torch.bool)
        advantages = subtract_baseline(returns, compared, group, "same_step") / group_spread(returns, group)
        informative = torch.zeros_like(returns).scatter_add(1, known.index, known.mask.double())
        size = (advantages.abs() * informative).unflatten(0, (-1, group)).sum(1)
        best = size.argsort(dim=1, descending=True, stable=True)[:, : self.config.num_selected_steps]
        trained = torch.zeros_like(size).scatter(1, best, 1.0)
        return advantages * trained.repeat_interleave(group, dim=0)

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """The group's steps at which the sample has an advantage, in their own order."""
        return nonzero_steps(advantages * trajectory.informative, self.config.num_selected_steps)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = step_views(trajectory, steps, advantages)
        views = replace(views, weight=views.weight / views.scored.sum(-1).clamp(min=1))
        if not self.config.masked_weight:
            return views
        masked = (trajectory.reveal_step[:, None] >= steps.index[:, :, None]).sum(-1)
        # At the advantage, which the surrogate is proportional to and the KL term is not.
        return replace(views, advantages=views.advantages * trajectory.final.shape[1] / masked)
