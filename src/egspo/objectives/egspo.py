"""EGSPO and EGSPO-SA (arXiv 2603.12554): entropy-guided step selection with stepwise advantages.

For the selected steps S of each of N samples,

    L = (1/N) sum_i sum_{t in S_i} [ -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t) + beta KL_t ]
    A_t = (1 + lambda_t) r(x_0) - lambda_t r(xhat_t) - baseline

with ``rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)`` of the whole action of step t, and ``xhat_t`` the greedy
one-step completion of its state. EGSPO is ``step_advantage_weight = 0``. The plain policy gradient over all
steps is ``selection = all``. Under ``low_confidence`` remasking the choice of positions depends on the
sampled tokens, and the score of the tokens alone is a surrogate; under the other rules, and with
``sampler.score_positions``, it is exact (docs/method.md).

Beyond the paper: steps may be drawn at random and weighed by the inverse of their probability, the baseline
weighed by score norms, lambda fitted. `egspo.objectives.vospo` puts these together.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Float64
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.advantages import (
    Baseline,
    equal_groups,
    fitted_weights,
    score_weighted_baseline,
    stepwise_returns,
    subtract_baseline,
)
from egspo.ops.selection import (
    Draws,
    Selection,
    draw_steps,
    entropy_distribution,
    nonzero_steps,
    optimal_draws,
    select_steps,
    split_draws,
)
from egspo.ops.surrogates import KL, kl_estimate
from egspo.ops.token_loss import TOKEN_METRICS, clipped_loss
from egspo.types import LossOutput, Proxy, Rewards, Scores, Steps, Trajectory, Views
from egspo.views import step_views


class Config(base.ObjectiveConfig):
    """Settings of EGSPO-SA; the published ones are the recipe ``objectives/egspo-sa-paper``."""

    num_selected_steps: int = Field(8, ge=1, description="K, steps trained on per sample")
    selection: Selection | Draws = "top_entropy"
    uniform_share: float = Field(
        0.1, ge=0, le=1, description="of steps that are drawn, share of the uniform distribution in theirs"
    )
    entropy_left: float = Field(
        0.1, ge=0, lt=1, description="adaptive: share of a sample's entropy that steps left out may have"
    )
    step_advantage_weight: Annotated[float, Field(ge=0)] | Literal["fitted"] = Field(
        0.5, description="lambda; 0: EGSPO without stepwise advantages; fitted: the best r - lambda_t r_t"
    )
    step_advantage_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: lambda times the fraction of denoising done before the step"
    )
    normalise_step_advantage: bool = Field(
        False, description="divide by 1 + lambda, as the released code does"
    )
    step_value_samples: int = Field(
        0,
        ge=0,
        description="one-step completions drawn of a state, whose mean reward counts; 0: the greedy one",
    )
    step_value_passes: int = Field(
        1, ge=1, description="forward passes in which a state is completed, its own step's the first"
    )
    baseline: Baseline | Literal["score_weighted"] = "leave_one_out"
    baseline_prior: float = Field(
        8.0, ge=0, description="score_weighted: completions that the mean of all other groups counts as"
    )
    drop_equal_groups: bool = Field(
        False, description="train on nothing of a group whose rewards are all equal, not even for the KL term"
    )
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
    metric_keys = TOKEN_METRICS
    Config = Config
    config: Config

    @property
    def proxy(self) -> Proxy | None:
        if self.config.step_advantage_weight == 0:
            return None
        return Proxy(self.config.step_value_samples, self.config.step_value_passes)

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
        if self.config.aggregation == "mean" and sampler.draws_positions:
            found.append(
                f"objective.aggregation: mean does not fit sampler.remasking={sampler.remasking} with scored "
                "positions, whose choice is one joint draw; use sum"
            )
        wanted = steps if self.config.selection == "all" else chosen
        return found + base.indivisible(wanted, "selected steps", train) + self._unfit(sampler, train)

    def _unfit(self, sampler, train) -> list[str]:
        """What does not go with steps drawn at random, or with baselines and weights beyond the paper."""
        config, found = self.config, []
        draws = self._draws or config.selection == "optimal"
        if draws and train.update_split == "steps":
            found.append(
                f"train.update_split: steps does not fit objective.selection={config.selection}, which draws "
                "another number of steps for each sample; use samples"
            )
        wants = {"selection": "optimal", "step_advantage_weight": "fitted"}
        if config.baseline == "same_rank":
            found += [
                f"objective.{key}: {value} needs an advantage of every step, which baseline 'same_rank' does "
                "not give; use leave_one_out or score_weighted"
                for key, value in wants.items()
                if getattr(config, key) == value
            ]
        surrogate = sampler.remasking == "low_confidence" and not sampler.score_positions
        if config.baseline == "score_weighted" and surrogate:
            found.append(
                "objective.baseline: score_weighted needs exact scores, which low_confidence lacks; set "
                "sampler.score_positions=true, or sampler.remasking=top_prob, left_to_right or random"
            )
        return found + self._unfit_values(sampler) + self._idle()

    def _unfit_values(self, sampler) -> list[str]:
        config, found = self.config, []
        samples, passes = config.step_value_samples, config.step_value_passes
        if samples and passes > 1:
            found.append(
                f"objective.step_value_samples: {samples} with step_value_passes {passes}, which completes "
                "greedily; use one of the two"
            )
        if samples and not sampler.temperature:
            found.append(
                f"objective.step_value_samples: {samples} at sampler.temperature 0, where all draws are "
                "equal; use 0"
            )
        if passes > 1 and sampler.cache != "none":
            found.append(
                f"objective.step_value_passes: {passes} with sampler.cache {sampler.cache!r}, which keeps "
                "what was revealed and not what might be; use 1, or cache=none"
            )
        return found

    def _idle(self) -> list[str]:
        """Settings other than their defaults that nothing would read."""
        config, found = self.config, []
        read = {
            "uniform_share": self._draws or config.selection == "optimal",
            "entropy_left": config.selection == "adaptive",
            "step_value_samples": config.step_advantage_weight != 0,
            "step_value_passes": config.step_advantage_weight != 0,
            "baseline_prior": config.baseline == "score_weighted",
            "step_advantage_schedule": config.step_advantage_weight != "fitted",
            "normalise_step_advantage": config.step_advantage_weight != "fitted",
        }
        needs = {
            "uniform_share": "a selection that draws",
            "entropy_left": "selection=adaptive",
            "step_value_samples": "a step_advantage_weight",
            "step_value_passes": "a step_advantage_weight",
            "baseline_prior": "baseline=score_weighted",
        }
        for key, used in read.items():
            value, default = getattr(config, key), type(config).model_fields[key].default
            if not used and value != default:
                need = needs.get(key, "a number as step_advantage_weight")
                found.append(f"objective.{key}: {value!r} does nothing without {need}; use {default!r}")
        return found

    def num_views(self, sampler) -> int:
        steps, config = sampler.diffusion_steps, self.config
        return steps if config.selection in ("all", "optimal") else min(steps, config.num_selected_steps)

    def candidates(self, trajectory: Trajectory) -> Steps | None:
        if self.proxy is None:
            return None
        if self._judges_all_steps:
            return select_steps("all", 0, trajectory.entropy, trajectory.informative, trajectory.seeds)
        return self._choose(trajectory)

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        advantages = self._advantages(rewards)
        if self.config.drop_equal_groups:
            equal = equal_groups(rewards.final, rewards.num_generations)
            advantages = advantages.masked_fill(equal[:, None], 0.0)
        return self._spent(advantages, rewards) if self.config.selection == "optimal" else advantages

    def _spent(self, advantages: Tensor, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        """The batch's budget of steps drawn by what each is expected to tell; 0 elsewhere.

        A weight may as well stand at the advantage, since the surrogate is proportional to both.
        """
        size = advantages.abs() * rewards.score_norm.sqrt()
        count, share = self.config.num_selected_steps, self.config.uniform_share
        return advantages * optimal_draws(size, count, rewards.num_generations, share, rewards.seeds)

    def _advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        batch, num_steps = len(rewards.final), rewards.num_steps
        if rewards.candidates is None:
            returns = rewards.final.double()[:, None].expand(batch, num_steps)
            return self._less_baseline(returns, torch.ones_like(returns, dtype=torch.bool), rewards)
        steps = rewards.candidates
        if self.config.step_advantage_weight == "fitted":
            returns = self._fitted_returns(rewards)
        else:
            weight = self._weights(num_steps, rewards.final.device)[steps.index]
            normalise = self.config.normalise_step_advantage
            returns = stepwise_returns(rewards.final, rewards.step_values, weight, normalise)
        if not self._judges_all_steps:
            return _spread(self._less_baseline(returns, steps.mask, rewards), steps, num_steps)
        by_step, mask = _spread(returns, steps, num_steps), _spread(steps.mask.double(), steps, num_steps) > 0
        return self._less_baseline(by_step, mask, rewards)

    def _less_baseline(
        self, returns: Tensor, mask: Tensor, rewards: Rewards
    ) -> Float[Tensor, "batch chosen"]:
        if self.config.baseline == "score_weighted":
            size, prior = rewards.num_generations, self.config.baseline_prior
            advantages = score_weighted_baseline(returns, rewards.score_norm, size, prior)
            return advantages.masked_fill(~mask, 0.0)
        return subtract_baseline(returns, mask, rewards.num_generations, self.config.baseline)

    def _fitted_returns(self, rewards: Rewards) -> Float[Tensor, "batch chosen"]:
        """``r - lambda_t r_t``; a step's lambda is that of all samples, wherever it stands among theirs."""
        steps = rewards.candidates
        values = _spread(rewards.step_values, steps, rewards.num_steps)
        weight = fitted_weights(rewards.final, values, rewards.score_norm, rewards.num_generations)
        return rewards.final.double()[:, None] - weight.gather(1, steps.index) * rewards.step_values

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        if self.config.selection == "optimal":
            return nonzero_steps(advantages * trajectory.informative, trajectory.num_steps)
        return self._choose(trajectory)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        views = step_views(trajectory, steps, advantages)
        if not self._draws:
            return views
        weight = self._drawn(trajectory).gather(1, steps.index)
        return replace(views, weight=views.weight * weight.to(views.weight.dtype))

    def useful(self, advantages: Float[Tensor, "batch chosen"]) -> Bool[Tensor, "batch chosen"]:
        return advantages != 0 if self.config.drop_equal_groups else super().useful(advantages)

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        log_ratio, advantage, weight = self._ratios(scores, views)
        clip, beta = (self.config.epsilon, self.config.epsilon_high), self.config.beta
        kl = self._kl(scores, reference, views) if beta else None
        return clipped_loss(log_ratio, advantage, weight, clip, views.weight, kl, beta)

    @property
    def _judges_all_steps(self) -> bool:
        """Whether steps have advantages that are not trained on: to be compared, or to be chosen by."""
        config = self.config
        compared = config.baseline in ("same_step", "leave_one_out", "score_weighted")
        return compared or config.selection == "optimal" or config.step_advantage_weight == "fitted"

    @property
    def _draws(self) -> bool:
        """Whether each sample draws its steps by entropy."""
        return self.config.selection in ("entropy_sampled", "top_and_sampled")

    def _drawn(self, trajectory: Trajectory) -> Float64[Tensor, "batch steps"]:
        """What each step's loss counts, 0 for those that were not drawn."""
        count, share = self.config.num_selected_steps, self.config.uniform_share
        draws = (trajectory.entropy, trajectory.informative, share)
        if self.config.selection == "top_and_sampled":
            return split_draws(*draws, count, trajectory.seeds)
        return draw_steps(entropy_distribution(*draws), count, trajectory.seeds)

    def _choose(self, trajectory: Trajectory) -> Steps:
        config = self.config
        if self._draws:
            return nonzero_steps(self._drawn(trajectory), config.num_selected_steps)
        return select_steps(
            config.selection,
            config.num_selected_steps,
            trajectory.entropy,
            trajectory.informative,
            trajectory.seeds,
            config.entropy_left,
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
