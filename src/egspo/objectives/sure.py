"""SURE, success replay: the denoising likelihood of what succeeded (docs/objectives/sure.md).

For N completions o_i of n_i tokens, of problems drawn uniformly among those solved so far, each one's text
drawn uniformly among its successes, and m draws v of l_iv ~ U{1..n_i} masked tokens S_iv,

    L = -(1/N) sum_i A_i ELBO_i / n_i,     ELBO_i = (1/m) sum_v (n_i / l_iv) sum_{k in S_iv} log p_iv(k)

with A_i = 1. ``num_replayed = 0`` trains on the rollout batch itself, where A_i is G over the number of
successes in the group, and 0 for failures: were the ELBO exact and all lengths the same, ``-grad L`` would
estimate the gradient of the log of the pass rate, up to a factor. No ratio, no clip, no reference.
"""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.bounds import draw_count, draw_subset
from egspo.ops.noise import VIEWS, uniform
from egspo.types import Completions, LossOutput, Rewards, Scores, Steps, Views
from egspo.views import masked_views

ROUNDING = 1e-9
"""Weighted parts of a reward may add up to a little less than they should."""


class Config(base.ObjectiveConfig):
    """Settings of SURE."""

    min_reward: float = Field(
        1.0, allow_inf_nan=False, description="a completion that earns at least this is a success"
    )
    num_replayed: int = Field(
        128, ge=0, description="successes an update trains on, over all ranks; 0: those of the rollout alone"
    )
    max_kept: int = Field(50_000, ge=1, description="successes kept; the oldest leave first")
    num_draws: int = Field(1, ge=1, description="m, random masks of a completion")


class Objective(base.SequenceObjective):
    name = "sure"
    description = "denoising likelihood of replayed successes"
    paper = "docs/objectives/sure.md"
    wants_old_scores = False
    metric_keys = ("loss/policy", "loss/elbo")
    Config = Config
    config: Config

    @property
    def num_replayed(self) -> int:
        return self.config.num_replayed

    @property
    def max_kept(self) -> int:
        return self.config.max_kept

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        if self.config.beta:
            found.append(f"objective.beta: {self.config.beta}, but sure knows no reference; use 0")
        most, default = self.config.max_kept, Config.model_fields["max_kept"].default
        if not self.num_replayed and most != default:
            found.append(f"objective.max_kept: {most} does nothing without num_replayed; use {default}")
        return found

    def num_views(self, sampler) -> int:
        return self.config.num_draws

    def max_scored(self, sampler) -> int:
        return sampler.max_completion_length

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        success = (
            (rewards.final > self.config.min_reward - ROUNDING)
            .double()
            .unflatten(0, (-1, rewards.num_generations))
        )
        share = success * rewards.num_generations / success.sum(1, keepdim=True).clamp(min=1)
        return share.flatten()[:, None].expand(-1, rewards.num_steps)

    def views(
        self, trajectory: Completions, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        tokens, draws = trajectory.completion_mask, self.config.num_draws
        masked = torch.stack([self._mask(trajectory, iteration * draws + k) for k in range(draws)], dim=1)
        weight = 1 / (draws * masked.sum(-1).double())
        return masked_views(trajectory, masked | ~tokens[:, None], masked, weight, advantages[:, 0])

    def _mask(self, completions: Completions, draw: int) -> Bool[Tensor, "batch length"]:
        """A random set of at least one token, all sizes equally likely."""
        tokens = completions.completion_mask
        points = uniform(completions.seeds, VIEWS, draw, tokens.shape[1] + 1)
        return draw_subset(tokens, draw_count(points[:, 0], 1, tokens.sum(1)), points[:, 1:])

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        each = views.weight * scores.token_logp.sum(-1)
        policy, used = -(views.advantages * each).sum(), views.weight != 0
        count = views.scored.sum(-1).clamp(min=1)
        elbo = float((scores.token_logp.detach().sum(-1) / count * used).sum())
        metrics = {
            "loss/policy": (float(policy.detach()), 0.0),
            "loss/elbo": (elbo, float(used.sum())),
        }
        return LossOutput(policy, metrics)
