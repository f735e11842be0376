"""SPG (arXiv 2510.09541): sandwiched policy gradient, a lower bound for good completions, an upper for bad.

For N completions o_i of n_i tokens with advantages A_i, and m draws v of masked tokens S_iv, l_iv of them,

    L = -(1 / sum_i n_i) sum_i n_i A_i V_i      V_i = ELBO_i                              where A_i >= 0
                                                V_i = w EUBO_i + (1 - w) ELBO_i           where A_i < 0
    ELBO_i = (1/m) sum_v (1 / l_iv) sum_{k in S_iv} log p_iv(k)
    EUBO_i = (1 / (b |K_i|)) sum_{k in K_i} log [ (1/m) sum_v (n_i / l_iv) 1{k in S_iv} p_iv(k)^b ]

in nats a token, K_i the tokens of any draw. A draw picks one of the completion's blocks, masks a random part
of it and all that follows, and lightly perturbs what it leaves before it. No ratio, no clip, no reference.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops.bounds import draw_count, draw_subset, upper_bound
from egspo.ops.noise import VIEWS, uniform
from egspo.types import LossOutput, Scores, Steps, Trajectory, Views
from egspo.views import masked_prompt, masked_views


class Config(base.SequenceConfig):
    """Settings of SPG with its mixture; ``mixture_weight`` 1 is SPG with EUBO, 0 the lower bound for all."""

    num_draws: int = Field(2, ge=1, description="m, canvases of a completion")
    masking: Literal["block", "random"] = Field(
        "block", description="a random part of one block and all that follows, or of the whole completion"
    )
    mixture_weight: float = Field(
        0.5, ge=0, le=1, description="w, share of the upper bound where the advantage is negative"
    )
    eubo_power: float = Field(1.5, ge=1, description="b, exponent of the upper bound")
    p_mask_context: float = Field(
        0.15, ge=0, lt=1, description="masked share of the prompt and of the blocks before the chosen one"
    )


class Objective(base.SequenceObjective):
    name = "spg"
    description = "sandwiched policy gradient: lower bound for good completions, upper bound for bad ones"
    paper = "arXiv 2510.09541"
    coupled = True
    wants_old_scores = False
    metric_keys = ("loss/policy", "loss/elbo", "loss/eubo")
    Config = Config
    config: Config

    def problems(self, sampler, train) -> list[str]:
        found = super().problems(sampler, train)
        if self.config.beta:
            found.append(f"objective.beta: {self.config.beta}, but spg knows no reference; use 0")
        return found

    def num_views(self, sampler) -> int:
        return self.config.num_draws

    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        draws = list(self._draws(trajectory, iteration))
        masked, prompt_masked = (torch.stack(masks, dim=1) for masks in zip(*draws, strict=True))
        tokens = trajectory.completion_mask
        # Every draw masks something, so that each of a sample's views may carry the sample's weight.
        weight = tokens.sum(1, keepdim=True).double().expand(-1, self.config.num_draws)
        hidden = masked | ~tokens[:, None]
        return masked_views(trajectory, hidden, masked, weight, advantages[:, 0], prompt_masked)

    def denominator(self, views: Views) -> float:
        return float(views.weight.amax(1).sum())

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        weight, advantage, mix = views.weight.amax(1), views.advantages[:, 0], self.config.mixture_weight
        count = views.scored.sum(-1).clamp(min=1)
        lower = (scores.token_logp.sum(-1) / count).mean(1)
        upper = upper_bound(scores.token_logp, views.scored, views.completion_length, self.config.eubo_power)
        value = torch.where(advantage < 0, mix * upper + (1 - mix) * lower, lower)
        policy = -(weight * advantage * value).sum()
        rows = float((weight != 0).sum())
        metrics = {
            "loss/policy": (float(policy.detach()), 0.0),
            "loss/elbo": (float((lower.detach() * (weight != 0)).sum()), rows),
            "loss/eubo": (float((upper.detach() * (weight != 0)).sum()), rows),
        }
        return LossOutput(policy, metrics)

    def _draws(
        self, trajectory: Trajectory, iteration: int
    ) -> Iterator[tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch prompt"]]]:
        """Masked tokens of the completion and of the prompt, for each draw."""
        tokens, seeds = trajectory.completion_mask, trajectory.seeds
        length = tokens.shape[1]
        block_length = trajectory.block_length if self.config.masking == "block" else length
        block = torch.arange(length, device=tokens.device) // block_length
        first = iteration * (1 + 2 * self.config.num_draws)
        for draw, chosen in enumerate(self._blocks(trajectory, block, first)):
            points = uniform(seeds, VIEWS, first + 1 + 2 * draw, 2 * length + 1)
            inside = tokens & (block == chosen[:, None])
            count = draw_count(points[:, 0], 1, inside.sum(1))
            masked = draw_subset(inside, count, points[:, 1 : length + 1]) | (block > chosen[:, None])
            masked |= (block < chosen[:, None]) & (points[:, length + 1 :] < self.config.p_mask_context)
            yield masked & tokens, masked_prompt(trajectory, first + 2 + 2 * draw, self.config.p_mask_context)

    def _blocks(
        self, trajectory: Trajectory, block: Int[Tensor, "length"], step: int
    ) -> Iterator[Int[Tensor, "batch"]]:
        """The block of each draw: different ones, as far as the completion reaches enough."""
        reached = (block * trajectory.completion_mask).amax(1, keepdim=True) + 1
        points = uniform(trajectory.seeds, VIEWS, step, int(block.max()) + 1)
        beyond = torch.arange(points.shape[1], device=points.device) >= reached
        order = points.masked_fill(beyond, 2.0).argsort(1)
        for draw in range(self.config.num_draws):
            yield order.gather(1, draw % reached)[:, 0]
