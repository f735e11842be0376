"""MDPO (arXiv 2508.13148): every step is rewarded, by a one-step completion, and compared at the same time.

The action of step t = 0 … T - 1 is all that it predicts: the tokens o_t that it draws at the m_t masked
positions of its canvas s_t, of L, most of which remasking then discards. r_t is the reward of the text with
them, which for the last step is the completion; r_{-1} = 0. Step t is worth what it gained and what came
after it,

    R_t = (r_t - r_{t-1}) + (1 / (T - 1 - t)) sum_{t < k < T} r_k
    R_{T-1} = (r_{T-1} - r_{T-2}) + r_{T-1}
    A_t = (R_t - mean R_t) / std R_t over the group, at the same t

A group trains on the K steps S with the largest sum of |A_t|, over its members that still have text to
reveal, and every token counts by the probability that it was drawn with:

    loss = (1/N) sum_i sum_{t in S} (1 / |o_t|) sum_{j in o_t} c_j [
               -(L / m_t) min(rho_j A_t, clip(rho_j, 1 - eps, 1 + eps_high) A_t) + beta KL_j ]
    rho_j = pi(o_j | s_t) / pi_old(o_j | s_t)        c_j = pi_old(o_j | s_t)

Log-probabilities are of the distribution that was sampled.

``actions = revealed``, our own: o_t are the tokens that step t reveals, which are what the trajectory
consists of, r_t is the reward of the greedy one-step completion of the state that they lead to, and c_j = 1.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from egspo.objectives.base import ClipConfig, ClipObjective, indivisible, unscored
from egspo.ops.advantages import group_spread, progress_returns, subtract_baseline
from egspo.ops.selection import nonzero_steps, select_steps
from egspo.ops.token_loss import TokenKL, old_token_logp
from egspo.types import Proxy, Rewards, Scores, Steps, Trajectory, Views
from egspo.views import step_views


class Config(ClipConfig):
    """Settings of MDPO; its optimizer's and sampler's are in ``objectives/mdpo``."""

    num_selected_steps: int = Field(8, ge=1, description="K, steps trained on per group")
    actions: Literal["predicted", "revealed"] = Field(
        "predicted", description="what of a step is rewarded and scored: all its draws, or those it reveals"
    )
    masked_weight: bool = Field(True, description="weigh a step by L / m_t, as the diffusion loss does")
    beta: float = Field(
        0.02, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )
    kl: TokenKL = "k2"


class Objective(ClipObjective):
    name = "mdpo"
    description = "a reward for every step by its one-step completion (MDPO)"
    paper = "arXiv 2508.13148"
    Config = Config
    config: Config

    @property
    def predicted(self) -> bool:
        return self.config.actions == "predicted"

    @property
    def proxy(self) -> Proxy:
        return Proxy(own=self.predicted)

    @property
    def wants_old_scores(self) -> bool:
        """The rollout keeps the log-probabilities of revealed tokens only."""
        return self.predicted

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        if self.predicted:
            found += unscored(self.name, sampler)
            if sampler.cache != "none":
                found.append(
                    f"sampler.cache: {sampler.cache!r}, but a cached step does not predict the whole canvas; "
                    "use none, or objective.actions=revealed"
                )
        steps, chosen = sampler.diffusion_steps, self.config.num_selected_steps
        if chosen > steps:
            found.append(
                f"objective.num_selected_steps: {chosen} exceeds sampler.diffusion_steps {steps}; "
                f"use at most {steps}"
            )
        return found + indivisible(chosen, "selected steps", train)

    def num_views(self, sampler) -> int:
        return min(sampler.diffusion_steps, self.config.num_selected_steps)

    def max_scored(self, sampler) -> int | None:
        return sampler.max_completion_length if self.predicted else None

    def candidates(self, trajectory: Trajectory) -> Steps:
        return select_steps("all", 0, trajectory.entropy, trajectory.informative, trajectory.seeds)

    def advantages(self, rewards: Rewards) -> Float64[Tensor, "batch steps"]:
        """0 at the steps that the sample's group does not train on."""
        final = rewards.final.double()[:, None]
        known = rewards.candidates
        # Behind the last candidate nothing changes the text any more: its value is the completion's.
        values = final.repeat(1, rewards.num_steps + 1)
        if self.predicted:  # of the step, not of the state before it; there is none of the initial state
            values[:, 0] = 0
        index = known.index + self.predicted
        at = index.masked_fill(~known.mask, rewards.num_steps)
        earned = torch.where(known.mask, rewards.step_values.double(), final)
        values = torch.cat([values.scatter(1, at, earned)[:, :-1], final], dim=1)
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
        if self.predicted:
            views = _predictions(trajectory, steps, views)
        views = replace(views, weight=views.weight / views.scored.sum(-1).clamp(min=1))
        if not self.config.masked_weight:
            return views
        masked = (trajectory.reveal_step[:, None] >= steps.index[:, :, None]).sum(-1)
        # At the advantage, which the surrogate is proportional to and the KL term is not.
        return replace(views, advantages=views.advantages * trajectory.final.shape[1] / masked)

    def token_weight(self, scores: Scores, views: Views) -> Float[Tensor, "batch views length"] | None:
        """The probability that each token was drawn with."""
        if not self.predicted:
            return None
        return old_token_logp(scores, views).exp()


def _predictions(trajectory: Trajectory, steps: Steps, views: Views) -> Views:
    """Views of the same canvases that score what was drawn at all their masked positions.

    The rollout keeps no log-probability of most of it: without others the policy is the one that drew it.
    """
    at = steps.index[:, :, None]
    return replace(
        views,
        targets=trajectory.one_step.gather(1, at.expand_as(views.targets)),
        scored=(trajectory.reveal_step[:, None] >= at) & steps.mask[:, :, None],
        order=None,
        old_token_logp=None,
        old_position_logp=None,
    )
