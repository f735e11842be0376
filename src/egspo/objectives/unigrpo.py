"""UniGRPO (MMaDA, arXiv 2505.15809): GRPO on partly masked completions, at another mask rate in each pass.

A completion is masked at a rate t, the prompt stays whole, and the masked tokens are scored from that canvas:

    log pi(o_k | q) ~ log f(o_k | q, o^t),   k in M, the masked tokens up to and including the end token

For N completions o_i of n_i tokens with ``A_i = (r_i - mean_j r_j) / std_j r_j`` over the group, and
``rho_ik`` the ratios to the policy before the updates on the same canvas,

    L = (1/N) sum_i (1/n_i) sum_{k in M_i} l_ik
    l_ik = -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps) A_i) + beta KL_ik

Rates of the passes n = 0, 1, ... over a rollout batch are spread evenly over [0, 1] from a random start of
each sample's own: ``t_n = (t_0 + v_n) mod 1`` with ``v_n`` = 0, 1/2, 1/4, 3/4, ... (van der Corput).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from egspo.objectives import base
from egspo.ops import noise
from egspo.ops.masking import van_der_corput
from egspo.types import Steps, Trajectory, Views
from egspo.views import masked_views


class Config(base.EstimateConfig):
    """Settings of UniGRPO; its clip and KL coefficient are not published, and GRPO's stand here."""

    beta: float = Field(
        0.04, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy"
    )
    scale: Literal["none", "std"] = Field(
        "std", description="std: divide advantages by the standard deviation of their group"
    )
    aggregation: Literal["tokens", "completions"] = Field(
        "completions",
        description="mean over all masked tokens, or over completions of each one's sum over its length",
    )
    mask_rates: Literal["spread", "random"] = Field(
        "spread", description="of a sample's passes: evenly spread from a random start, or each drawn anew"
    )


class Objective(base.EstimateObjective):
    name = "unigrpo"
    description = "token-level GRPO on completions masked at rates that vary from pass to pass (MMaDA)"
    paper = "arXiv 2505.15809"
    Config = Config
    config: Config

    def num_views(self, sampler) -> int:
        return 1

    def max_scored(self, sampler) -> int:
        return sampler.max_completion_length

    def views(self, trajectory: Trajectory, steps: Steps, advantages: torch.Tensor, iteration: int) -> Views:
        uniform = noise.uniform(trajectory.seeds, noise.VIEWS, 2 * iteration + 1, trajectory.final.shape[1])
        masked = uniform < self._rates(trajectory, iteration)[:, None]
        scored = masked & trajectory.completion_mask
        weight = self.sample_weight(trajectory.completion_mask) * scored.any(1)
        return masked_views(
            trajectory,
            masked=masked[:, None],
            scored=scored[:, None],
            weight=weight[:, None],
            advantages=advantages[:, 0],
        )

    def _rates(self, trajectory: Trajectory, iteration: int) -> Float[Tensor, "batch"]:
        if self.config.mask_rates == "random":
            return noise.uniform(trajectory.seeds, noise.VIEWS, 2 * iteration, 1)[:, 0]
        start = noise.uniform(trajectory.seeds, noise.VIEWS, 0, 1)[:, 0]
        return (start + van_der_corput(iteration)) % 1
