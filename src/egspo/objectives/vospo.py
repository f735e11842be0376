"""VOSPO, variance-optimal step policy optimization: our own composition (docs/objectives/vospo.md).

The policy gradient over all denoising steps, estimated without bias and with the least variance that what
the rollout already knows can buy. For the N samples of a batch, with R_t = r - lambda_t r(xhat_t), w_t the
squared norm of the score of action a_t at the logits, k a number of pseudo-completions in mean weights, and
b_rest the weighted mean of the other groups,

    A_t = R_t - (sum_{j != i} w_jt R_jt + k b_rest) / (sum_{j != i} w_jt + k)
    p_t = min(1, c |A_t| sqrt(w_t)), with c such that they add up to K N
    L = (1/N) sum_i sum_{t drawn} [ -min(rho_t A_t, clip(rho_t) A_t) / p_t + beta KL_t ]

lambda_t is the regression coefficient of the reward on the one-step reward of the state, per step, over the
other groups. Each part is a setting of `egspo.objectives.egspo`; here are their defaults together.
"""

from typing import Annotated, Literal

from pydantic import Field

from egspo.objectives import egspo
from egspo.ops.advantages import Baseline
from egspo.ops.selection import Draws, Selection


class Config(egspo.Config):
    """Settings of VOSPO."""

    num_selected_steps: int = Field(4, ge=1, description="K, steps trained on per sample, over the batch")
    selection: Selection | Draws = "optimal"
    step_advantage_weight: Annotated[float, Field(ge=0)] | Literal["fitted"] = "fitted"
    baseline: Baseline | Literal["score_weighted"] = "score_weighted"


class Objective(egspo.Objective):
    name = "vospo"
    description = "steps drawn by advantage and score norm, score-weighted baselines, fitted step values"
    paper = "docs/objectives/vospo.md"
    Config = Config
