"""GDSD (arXiv 2605.29398): the denoiser distilled from itself, guided by advantages, by least squares.

For N completions o_i of n_i tokens with advantages A_i, and D draws d of masked tokens,

    L = (1/N) sum_i (1/D) sum_d [ (clip(Delta_id, log(1 - eps), log(1 + eps_high)) / n_i - psi A_i)^2
                                  + beta KL_id ]
    Delta_id = G_id - G_id,old                        KL_id = (G_id - G_id,ref)^2 / (2 n_i)
    G_id = (1/V) sum_v ((n_i + 1) / l_iv) sum_{k in S_iv} log p_iv(k)

over the V = 2 views of a draw, ``l ~ U{0..n}`` random positions and their complement, the same for the
policy, the old policy and the reference. The teacher, ``p_old exp(psi A)`` up to its normalisation, is what
maximises ``psi A`` less the reverse KL to the old policy; no ratio of likelihoods is taken.
"""

import math

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base, espo
from egspo.ops.advantages import Baseline
from egspo.ops.bounds import mask_weights
from egspo.ops.surrogates import kl_estimate
from egspo.types import LossOutput, Scores, Views


class Config(base.SequenceConfig):
    """Settings of GDSD."""

    baseline: Baseline = Field("leave_one_out", description="of the group, the sample itself left out")
    beta: float = Field(0.001, ge=0, description="KL coefficient; 0 costs no reference policy")
    psi: float = Field(10.0, gt=0, description="guidance: nats a token that an advantage of 1 asks for")
    num_draws: int = Field(1, ge=1, description="D, random masks of a completion")
    complement: bool = Field(True, description="after each mask also the tokens that it left")
    epsilon: float = Field(
        4e-4, gt=0, lt=1, description="how far below, as a ratio of the whole completion, before it is held"
    )
    epsilon_high: float = Field(4e-4, gt=0, description="how far above")


class Objective(espo.Objective):
    name = "gdsd"
    description = "guided self-distillation: log-ratios of denoised tokens fitted to advantages"
    paper = "arXiv 2605.29398"
    Config = Config
    config: Config

    def active(self, views: Views) -> Bool[Tensor, "batch views"]:
        """All: an advantage of 0 asks for a log-ratio of 0, which holds a completion in place."""
        return views.weight != 0

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        config, length = self.config, views.completion_length[:, None]
        weight = views.weight.amax(1, keepdim=True) / config.num_draws
        used = (weight != 0).expand(-1, config.num_draws)
        rows = float(used.sum())
        gap = self.by_draw(self.gaps(scores, views), views)
        low, high = math.log(1 - config.epsilon), math.log(1 + config.epsilon_high)
        residual = gap.clamp(low, high) / length - config.psi * views.advantages[:, :1]
        policy = (weight * residual.square()).sum()
        loss, kl_sum = policy, 0.0
        ours = self.by_draw(scores.token_logp, views)
        if config.beta:
            kl = kl_estimate("k2", ours, self.by_draw(reference.token_logp, views)) / length
            loss = policy + config.beta * (weight * kl).sum()
            kl_sum = float((kl.detach() * used).sum())
        gap = gap.detach()
        held = ((gap < low) | (gap > high)) & used
        metrics = {
            "loss/policy": (float(policy.detach()), 0.0),
            "loss/clip_fraction": (float(held.sum()), rows),
            "loss/ratio": (float(((gap / length).exp() * used).sum()), rows),
            "loss/kl": (kl_sum, rows),
            "loss/elbo": (float((ours.detach() / length * used).sum()), rows),
        }
        return LossOutput(loss, metrics)

    def by_draw(
        self, token_logp: Float[Tensor, "batch views length"], views: Views
    ) -> Float[Tensor, "batch draws"]:
        """Each draw's estimate of the lower bound, in nats."""
        each = mask_weights(views.scored, views.completion_length).to(token_logp.dtype) * token_logp.sum(-1)
        return each.unflatten(1, (self.config.num_draws, -1)).mean(-1)
