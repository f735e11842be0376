"""EGSPO and EGSPO-SA (arXiv 2603.12554): entropy-guided step selection with stepwise advantages.

For the selected steps S of each of N samples,

    L = (1/N) sum_i sum_{t in S_i} [ -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t) + beta KL_t ]
    A_t = (1 + lambda_t) r(x_0) - lambda_t r(xhat_t) - baseline

with ``rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)`` of the whole action of step t, and ``xhat_t`` the greedy
one-step completion of its state. EGSPO is ``step_advantage_weight = 0``. The plain policy gradient over all
steps is ``selection = all``. Under ``low_confidence`` remasking the choice of positions depends on the
sampled tokens, and the score of the tokens alone is a surrogate; under the other rules it is exact
(docs/method.md).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.advantages import Baseline, stepwise_returns, subtract_baseline
from egspo.ops.selection import Selection, select_steps
from egspo.ops.surrogates import KL, clipped_surrogate, is_clipped, kl_estimate
from egspo.types import LossOutput, Rewards, Scores, Steps, Trajectory, Views
from egspo.views import step_views


class Config(base.ObjectiveConfig):
    """Settings of EGSPO-SA; the published ones are the recipe ``objectives/egspo-sa-paper``."""

    num_selected_steps: int = Field(8, ge=1, description="K, steps trained on per sample")
    selection: Selection = "top_entropy"
    step_advantage_weight: float = Field(
        0.5, ge=0, description="lambda; 0 is EGSPO without stepwise advantages"
    )
    step_advantage_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: lambda times the fraction of denoising done before the step"
    )
    normalise_step_advantage: bool = Field(
        False, description="divide by 1 + lambda, as the released code does"
    )
    baseline: Baseline = "leave_one_out"
    epsilon: float = Field(0.2, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.5, ge=0, description="clip above")
    ratio: Literal["step", "token"] = Field("step", description="one ratio per step or per revealed token")
    aggregation: Literal["sum", "mean"] = Field(
        "sum", description="how the tokens of a step combine: sum is the log-probability of the joint action"
    )
    kl: KL = "k3"


class Objective(base.Objective):
    name = "egspo"
    description = "entropy-guided step selection with stepwise advantages (EGSPO, EGSPO-SA)"
    paper = "arXiv 2603.12554"
    metric_keys = ("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/kl")
    Config = Config
    config: Config

    @property
    def wants_step_values(self) -> bool:
        return self.config.step_advantage_weight > 0

    @property
    def wants_exact_kl(self) -> bool:
        return self.config.beta > 0 and self.config.kl == "exact"

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        steps, chosen = sampler.diffusion_steps, self.config.num_selected_steps
        if self.config.selection != "all" and chosen > steps:
            found.append(
                f"objective.num_selected_steps: {chosen} exceeds sampler.diffusion_steps {steps}; "
                f"use at most {steps}, or selection=all"
            )
        if self.config.aggregation == "mean" and sampler.remasking == "plackett_luce":
            found.append(
                "objective.aggregation: mean does not fit sampler.remasking=plackett_luce, "
                "whose position choice is one joint draw; use sum"
            )
        wanted = steps if self.config.selection == "all" else chosen
        if train.update_split == "steps" and wanted % train.updates_per_rollout:
            found.append(
                f"train.updates_per_rollout: {train.updates_per_rollout} does not divide "
                f"the {wanted} selected steps"
            )
        return found

    def num_views(self, sampler) -> int:
        steps = sampler.diffusion_steps
        return steps if self.config.selection == "all" else min(steps, self.config.num_selected_steps)

    def candidates(self, trajectory: Trajectory) -> Steps | None:
        if not self.wants_step_values:
            return None
        if self._compares_same_step:
            return select_steps("all", 0, trajectory.entropy, trajectory.informative, trajectory.seeds)
        return self._choose(trajectory)

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        batch, num_steps = len(rewards.final), rewards.num_steps
        if rewards.candidates is None:
            returns = rewards.final.double()[:, None]
            mask = torch.ones_like(returns, dtype=torch.bool)
            advantages = subtract_baseline(returns, mask, rewards.num_generations, self.config.baseline)
            return advantages.expand(batch, num_steps)
        weight = self._weights(num_steps, rewards.final.device)
        steps, normalise = rewards.candidates, self.config.normalise_step_advantage
        returns = stepwise_returns(rewards.final, rewards.step_values, weight[steps.index], normalise)
        if not self._compares_same_step:
            advantages = subtract_baseline(returns, steps.mask, rewards.num_generations, self.config.baseline)
            return _spread(advantages, steps, num_steps)
        by_step, mask = _spread(returns, steps, num_steps), _spread(steps.mask.double(), steps, num_steps) > 0
        return subtract_baseline(by_step, mask, rewards.num_generations, self.config.baseline)

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        return self._choose(trajectory)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        return step_views(trajectory, steps, advantages)

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        log_ratio, advantage, weight = self._ratios(scores, views)
        low, high = self.config.epsilon, self.config.epsilon_high
        policy = (weight * clipped_surrogate(log_ratio, advantage, low, high)).sum()
        clipped = is_clipped(log_ratio.detach(), advantage, low, high) & (weight != 0)
        count = float((weight != 0).sum())
        metrics = {
            "loss/clip_fraction": (float(clipped.sum()), count),
            "loss/ratio": (float((log_ratio.detach().exp() * (weight != 0)).sum()), count),
        }
        kl_sum, loss = 0.0, policy
        if self.config.beta:
            kl = self._kl(scores, reference, views)
            loss = policy + self.config.beta * (views.weight * kl).sum()
            kl_sum = float((kl.detach() * (views.weight != 0)).sum())
        metrics["loss/policy"] = (float(policy.detach()), 0.0)
        metrics["loss/kl"] = (kl_sum, float((views.weight != 0).sum()))
        return LossOutput(loss, metrics)

    @property
    def _compares_same_step(self) -> bool:
        return self.config.baseline in ("same_step", "leave_one_out")

    def _choose(self, trajectory: Trajectory) -> Steps:
        config = self.config
        return select_steps(
            config.selection,
            config.num_selected_steps,
            trajectory.entropy,
            trajectory.informative,
            trajectory.seeds,
        )

    def _weights(self, num_steps: int, device) -> Float[Tensor, "steps"]:
        weight = torch.full(
            (num_steps,), self.config.step_advantage_weight, dtype=torch.float64, device=device
        )
        if self.config.step_advantage_schedule == "linear":
            weight = weight * torch.arange(num_steps, device=device) / num_steps
        return weight

    def _ratios(self, scores: Scores, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Log-ratio, advantage and weight of each ratio: one a view, or ``length + 1``."""
        tokens = scores.token_logp - views.old_token_logp
        places = scores.position_logp - views.old_position_logp
        count = views.scored.sum(-1).clamp(min=1) if self.config.aggregation == "mean" else 1
        if self.config.ratio == "step":
            return tokens.sum(-1) / count + places, views.advantages, views.weight
        log_ratio = torch.cat([tokens, places[..., None]], dim=-1)
        drawn = torch.full_like(places, views.order is not None, dtype=torch.bool)
        scored = torch.cat([views.scored, drawn[..., None]], dim=-1)
        weight = (views.weight / count)[..., None] * scored
        return log_ratio, views.advantages[..., None].expand_as(log_ratio), weight

    def _kl(self, scores: Scores, reference: Scores | None, views: Views) -> Float[Tensor, "batch views"]:
        """Summed (or averaged) over the tokens of the step."""
        if self.config.kl == "exact":
            each = scores.exact_kl
        else:
            each = kl_estimate(self.config.kl, scores.token_logp, reference.token_logp) * views.scored
        total = each.sum(-1)
        return total / views.scored.sum(-1).clamp(min=1) if self.config.aggregation == "mean" else total


def _spread(values: Tensor, steps: Steps, num_steps: int) -> Float[Tensor, "batch steps"]:
    """Values of chosen steps put at their place among all steps, 0 elsewhere."""
    spread = torch.zeros(len(values), num_steps, dtype=values.dtype, device=values.device)
    return spread.scatter_add(1, steps.index, values * steps.mask)
