"""wd1 (arXiv 2507.08838): weighted log-likelihood with positive and negative samples, no ratio, no reference.

For each group of G completions o_i with advantages ``A_i = r_i - mean_j r_j``,

    L = -sum_i w+_i log pi(o_i | q) + sum_i w-_i log pi(o_i | q)
    w+_i = exp(psi A_i) / sum_j exp(psi A_j),   w-_i = exp(-psi A_i) / sum_j exp(-psi A_j)

averaged over the groups. ``log pi(o | q) = sum_k log f(o_k | q', [MASK] ... [MASK])`` is the mean-field
estimate of diffu-GRPO: the completion masked as a whole, each token of the prompt with probability p, anew
for each pass, summed over the tokens up to and including the end token. Without a ratio, nothing but the
current policy is evaluated.

Both sums carry the same log-likelihood, so that one weight stands for the two: ``w+_i - w-_i``. Equal rewards
give exactly 0.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.advantages import likelihood_weights
from egspo.types import LossOutput, Rewards, Scores, Steps, Trajectory, Views
from egspo.views import masked_prompt, masked_views


class Config(base.SequenceConfig):
    """Settings of wd1; those of its optimizer are in the recipe ``objectives/wd1``."""

    psi: float = Field(1.0, gt=0, description="sharpness of the weights over a group")
    p_mask_prompt: float = Field(0.15, ge=0, le=1, description="probability that a prompt token is masked")


class Objective(base.SequenceObjective):
    name = "wd1"
    description = "log-likelihoods weighted by a softmax of advantages, up and down; no ratio, no reference"
    paper = "arXiv 2507.08838"
    wants_old_scores = False
    metric_keys = ("loss/policy", "loss/logp_raised", "loss/logp_lowered")
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        if self.config.beta:
            found.append(f"objective.beta: {self.config.beta}, but wd1 has no reference policy; use 0")
        return found

    def num_views(self, sampler) -> int:
        return 1

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        """``G (w+ - w-)``: what a log-likelihood is multiplied by, in a mean over the batch."""
        advantages = super().advantages(rewards)[:, :1].contiguous()
        weights = likelihood_weights(advantages, rewards.num_generations, self.config.psi)
        return weights.expand(-1, rewards.num_steps)

    def views(self, trajectory: Trajectory, steps: Steps, advantages: torch.Tensor, iteration: int) -> Views:
        scored = trajectory.completion_mask[:, None]
        return masked_views(
            trajectory,
            masked=torch.ones_like(scored),
            scored=scored,
            weight=torch.ones_like(trajectory.seeds, dtype=torch.float64)[:, None],
            advantages=advantages[:, 0],
            prompt_masked=masked_prompt(trajectory, iteration, self.config.p_mask_prompt)[:, None],
        )

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        logp = scores.token_logp.sum(-1)
        policy = -(views.weight * views.advantages * logp).sum()
        return LossOutput(
            policy,
            {
                "loss/policy": (float(policy.detach()), 0.0),
                "loss/logp_raised": _mean(logp, views, views.advantages > 0),
                "loss/logp_lowered": _mean(logp, views, views.advantages < 0),
            },
        )


def _mean(logp: Tensor, views: Views, chosen: Tensor) -> tuple[float, float]:
    """Sum of the log-likelihoods of chosen completions, and the number of their tokens."""
    chosen = chosen & (views.weight != 0)
    return float((logp.detach() * chosen).sum()), float((views.scored.sum(-1) * chosen).sum())
