"""What an objective is: five pure hooks over one bundle of records, called in this order by the trainer.

candidates -> advantages -> select -> views -> loss. An objective never sees a model, a rank or a counter.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from egspo.types import LossOutput, Rewards, Scores, Steps, Trajectory, Views


class ObjectiveConfig(BaseModel):
    """Settings shared by all objectives; an objective adds its own in a subclass named ``Config``."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="file name of the objective")
    beta: float = Field(0.0, ge=0, description="KL coefficient; 0 costs nothing, not even a reference policy")


class Objective(ABC):
    """A way to turn rewarded trajectories into a loss.

    A subclass is named ``Objective`` in a file named as the method; ``Config`` is its settings, whose
    defaults are the method's.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    """One line for ``egspo list objectives``."""
    paper: ClassVar[str]
    coupled: ClassVar[bool] = False
    """True if the views of one sample enter its loss together, so that they must share a microbatch."""
    metric_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the metrics that ``loss`` returns."""
    Config: ClassVar[type[ObjectiveConfig]]

    def __init__(self, config: ObjectiveConfig):
        self.config = config

    @property
    def wants_exact_kl(self) -> bool:
        """Whether ``loss`` needs the KL of whole distributions."""
        return False

    @property
    def wants_step_values(self) -> bool:
        """Whether the sampler shall record one-step completions for ``candidates``."""
        return False

    def problems(self, sampler: Any, train: Any) -> list[str]:
        """Impossible combinations with the sampler's and trainer's settings."""
        return []

    def candidates(self, trajectory: Trajectory) -> Steps | None:
        """States whose one-step completions are to be rewarded; None if none are needed."""
        return None

    @abstractmethod
    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        """Advantage of every step, 0 where a step has none. Sees the batch of all ranks."""

    @abstractmethod
    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """Which steps to train on, in order of preference."""

    @abstractmethod
    def views(
        self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"], iteration: int
    ) -> Views:
        """The canvases to evaluate. Weights are a sample's own; the trainer divides by ``denominator``."""

    def denominator(self, views: Views) -> float:
        """What the loss is divided by once summed over all ranks; default: the number of samples."""
        return float(len(views))

    def active(self, views: Views) -> Bool[Tensor, "batch views"]:
        """Views that can contribute a gradient; the others cost no forward pass."""
        useful = (views.advantages != 0) | (self.config.beta > 0)
        return (views.weight != 0) & useful

    @abstractmethod
    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        """The loss of a microbatch: the sum over views of weight times loss."""


def step_views(trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"]) -> Views:
    """Views that show chosen denoising steps, scoring what each step did.

    Each has weight 1, or the importance of a step that was sampled from another distribution. The choice of
    positions is scored where it is a draw that the policy shapes (Plackett-Luce).
    """
    places = trajectory.remasking == "plackett_luce"
    canvas = trajectory.states_at(steps.index)
    prompts = trajectory.prompt_ids[:, None].expand(-1, canvas.shape[1], -1)
    scored = (trajectory.reveal_step[:, None] == steps.index[:, :, None]) & steps.mask[:, :, None]
    weight = steps.mask.to(trajectory.entropy.dtype)
    if trajectory.importance is not None:
        weight = weight * trajectory.importance.gather(1, steps.index)
    return Views(
        inputs=torch.cat([prompts, canvas], dim=2),
        attention_mask=torch.cat(
            [trajectory.prompt_mask, torch.ones_like(trajectory.completion_mask)], dim=1
        ),
        targets=trajectory.final,
        scored=scored,
        weight=weight,
        advantages=(advantages.gather(1, steps.index) * steps.mask).to(trajectory.entropy.dtype),
        step=steps.index,
        order=_draw_order(trajectory, steps) if places else None,
        old_token_logp=trajectory.token_logp[:, None] * scored,
        old_position_logp=trajectory.position_logp.gather(1, steps.index) * (steps.mask & places),
    )


def _draw_order(trajectory: Trajectory, steps: Steps) -> Tensor:
    """Rank of each position in the step's ordered draw; -1 candidate not drawn, -2 no candidate."""
    length = trajectory.final.shape[1]
    block = torch.arange(length, device=trajectory.final.device) // trajectory.block_length
    now = trajectory.reveal_step[:, None] == steps.index[:, :, None]
    current = torch.where(now, block, 0).amax(-1, keepdim=True)
    candidate = (trajectory.reveal_step[:, None] >= steps.index[:, :, None]) & (block == current)
    order = torch.where(candidate, -1, -2)
    return torch.where(now, trajectory.reveal_order[:, None], order)
