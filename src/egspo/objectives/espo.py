"""ESPO (arXiv 2512.03759): one clipped ratio a completion, of its evidence lower bounds.

For N completions o_i of n_i tokens with advantages A_i, and V views S_iv of l_iv masked tokens each,

    L = (1/N) sum_i [ -min(rho_i A_i, clip(rho_i, 1 - eps, 1 + eps_high) A_i) + beta KL_i ]
    rho_i = exp( (ELBO_i - ELBO_i,old) / n_i )        KL_i = (ELBO_i - ELBO_i,ref)^2 / (2 n_i)
    ELBO_i = (1/V) sum_v ((n_i + 1) / l_iv) sum_{k in S_iv} log p_iv(k)

with ``l ~ U{0..n}`` random positions of the completion, each draw followed by its complement, and the same
views for the policy, the old policy and the reference. That estimate is unbiased (`egspo.ops.bounds`).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.advantages import Baseline
from egspo.ops.bounds import draw_masks, mask_weights
from egspo.ops.surrogates import clipped_surrogate, is_clipped, kl_estimate
from egspo.types import LossOutput, Scores, Steps, Trajectory, Views
from egspo.views import masked_views


class Config(base.SequenceConfig):
    """Settings of ESPO."""

    baseline: Baseline = Field("leave_one_out", description="of the group, the sample itself left out")
    beta: float = Field(0.01, ge=0, description="KL coefficient; 0 costs no reference policy")
    num_draws: int = Field(2, ge=1, description="random masks of a completion")
    complement: bool = Field(True, description="after each mask also the tokens that it left")
    epsilon: float = Field(0.2, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.2, ge=0, description="clip above")
    kl: Literal["k1", "k2", "k3"] = Field("k2", description="estimator, of the whole bounds")


class Objective(base.SequenceObjective):
    name = "espo"
    description = "one clipped ratio a completion, of evidence lower bounds on random and complementary masks"
    paper = "arXiv 2512.03759"
    coupled = True
    metric_keys = ("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/kl", "loss/elbo")
    Config = Config
    config: Config

    def num_views(self, sampler) -> int:
        return self.config.num_draws * (2 if self.config.complement else 1)

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        tokens = trajectory.completion_mask
        masked = draw_masks(
            trajectory.seeds, tokens, iteration, self.config.num_draws, self.config.complement
        )
        # An empty mask adds nothing to the bound and costs no forward pass.
        weight = masked.any(-1).double()
        return masked_views(trajectory, masked | ~tokens[:, None], masked, weight, advantages[:, 0])

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        config, advantage, length = self.config, views.advantages[:, 0], views.completion_length
        # A sample's weight stands on each of its views that show something.
        weight = views.weight.amax(1)
        used, rows = weight != 0, float((weight != 0).sum())
        log_ratio, scale = self.ratio(self.bound(self.gaps(scores, views), views), length)
        surrogate = clipped_surrogate(log_ratio, advantage, config.epsilon, config.epsilon_high)
        policy = (weight * scale * surrogate).sum()
        loss, kl_sum = policy, 0.0
        elbo = self.bound(scores.token_logp, views)
        if config.beta:
            kl = kl_estimate(config.kl, elbo, self.bound(reference.token_logp, views)) / length
            loss = policy + config.beta * (weight * kl).sum()
            kl_sum = float((kl.detach() * used).sum())
        log_ratio, elbo = log_ratio.detach(), elbo.detach() / length
        clipped = is_clipped(log_ratio, advantage, config.epsilon, config.epsilon_high) & used
        metrics = {
            "loss/policy": (float(policy.detach()), 0.0),
            "loss/clip_fraction": (float(clipped.sum()), rows),
            "loss/ratio": (float((log_ratio.exp() * used).sum()), rows),
            "loss/kl": (kl_sum, rows),
            "loss/elbo": (float((elbo * used).sum()), rows),
        }
        return LossOutput(loss, metrics)

    def gaps(self, scores: Scores, views: Views) -> Float[Tensor, "batch views length"]:
        """``log pi - log pi_old`` of each token; before the first of several updates the two are the same."""
        old = views.old_token_logp
        return scores.token_logp - (scores.token_logp.detach() if old is None else old)

    def bound(self, token_logp: Float[Tensor, "batch views length"], views: Views) -> Float[Tensor, "batch"]:
        """The lower bound's estimate, in nats; linear in the log-probabilities."""
        return (self.coefficients(views).to(token_logp.dtype) * token_logp.sum(-1)).sum(1)

    def coefficients(self, views: Views) -> Float[Tensor, "batch views"]:
        """What a view's summed log-probability counts in the bound."""
        return mask_weights(views.scored, views.completion_length) / views.scored.shape[1]

    def ratio(
        self, gap: Float[Tensor, "batch"], length: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Logarithm of the ratio that is clipped, and the weight of its surrogate."""
        return gap / length, torch.ones_like(gap)
