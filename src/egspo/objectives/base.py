"""What an objective is: five pure hooks over one bundle of records, called in this order by the trainer.

candidates -> advantages -> select -> views -> loss. An objective never sees a model, a rank or a counter.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from egspo.ops import noise
from egspo.ops.advantages import Baseline, subtract_baseline
from egspo.ops.surrogates import clipped_surrogate, is_clipped, kl_estimate
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
    tempered: ClassVar[bool] = True
    """Whether log-probabilities are of the distribution that was sampled (temperature), or untempered."""
    wants_old_scores: ClassVar[bool] = False
    """True if ``loss`` needs the old policy's log-probabilities on views that the rollout has none of."""
    requires: ClassVar[Mapping[str, Any]] = {}
    """Settings of the sampler that the method is defined with."""
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
        return [
            f"sampler.{key}: {getattr(sampler, key)!r}, but {self.name} is defined with {value!r}; set "
            f"sampler.{key}={value}"
            for key, value in self.requires.items()
            if getattr(sampler, key) != value
        ]

    @abstractmethod
    def num_views(self, sampler: Any) -> int:
        """Forward passes of one sample in one update, at most."""

    def max_scored(self, sampler: Any) -> int | None:
        """Positions that a view scores at most, if one draw of the views need not show it."""
        return None

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


class SequenceConfig(ObjectiveConfig):
    """Settings of objectives that judge a completion as a whole."""

    baseline: Baseline = Field("same_step", description="of the group; same_step: its mean")
    scale: Literal["none", "std"] = Field(
        "none", description="std: divide advantages by the standard deviation of their group"
    )


class SequenceObjective(Objective):
    """One advantage a completion; log-probabilities on canvases drawn for the purpose, whatever the rollout.

    ``views`` draws them anew for each pass over a rollout batch, from the samples' seeds (stream
    `egspo.ops.noise.VIEWS`, step = the pass).
    """

    tempered = False
    wants_old_scores = True
    config: SequenceConfig

    def problems(self, sampler: Any, train: Any) -> list[str]:
        found = super().problems(sampler, train)
        if train.update_split == "steps":
            found.append(
                f"train.update_split: steps, but {self.name} trains on whole completions; use samples"
            )
        return found

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        returns = rewards.final.double()[:, None]
        everyone = torch.ones_like(returns, dtype=torch.bool)
        size = rewards.num_generations
        advantages = subtract_baseline(returns, everyone, size, self.config.baseline)
        if self.config.scale == "std":
            spread = returns.unflatten(0, (-1, size)).std(1, keepdim=True).expand(-1, size, -1).flatten(0, 1)
            advantages = advantages / (spread + _SMALLEST_SPREAD)
        return advantages.expand(len(returns), rewards.num_steps)

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """No step: what is trained on is the completion."""
        none = torch.zeros(len(advantages), 1, dtype=torch.long, device=advantages.device)
        return Steps(none, none > 0)


_SMALLEST_SPREAD = 1e-4


class ClippedConfig(SequenceConfig):
    """Settings of objectives that clip one ratio a token."""

    epsilon: float = Field(0.2, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.2, ge=0, description="clip above")
    kl: Literal["k1", "k2", "k3"] = "k3"
    aggregation: Literal["tokens", "completions"] = Field(
        "tokens", description="mean over all tokens of the update, or over completions of each one's mean"
    )


class ClippedObjective(SequenceObjective):
    """GRPO (arXiv 2402.03300) on estimates of a completion's log-probabilities, token by token.

    For the scored tokens k of N completions o_i, with ``rho = exp(logp - old)`` of the estimates,

        L = (1/D) sum_i w_i sum_k [ -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps_high) A_i) + beta KL_ik ]

    ``aggregation = tokens``: w_i = 1, D the number of scored tokens; ``completions``: w_i = 1 / (scored
    tokens of o_i), D = N. A subclass draws the views, weighs each sample's first one by `sample_weight`, and
    says in `estimate` what its views make of a token.
    """

    metric_keys = ("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/kl")
    config: ClippedConfig

    def estimate(
        self, token_logp: Float[Tensor, "batch views length"], views: Views
    ) -> Float[Tensor, "batch length"]:
        """A completion's log-probabilities from those on its views; default: those on its only one."""
        return token_logp[:, 0]

    def sample_weight(self, scored: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """w_i; 0 where nothing is scored."""
        count = scored.sum(1)
        if self.config.aggregation == "tokens":
            return (count > 0).double()
        return torch.where(count > 0, 1 / count.double(), 0.0)

    def denominator(self, views: Views) -> float:
        if self.config.aggregation == "tokens":
            # Masks may leave a whole update without a token; its weights are 0 then, and stay so.
            return max(float(views.scored.any(1).sum()), _SMALLEST_COUNT)
        return super().denominator(views)

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        logp = self.estimate(scores.token_logp, views)
        old, config = views.old_token_logp, self.config
        log_ratio = logp - (logp.detach() if old is None else self.estimate(old, views))
        weight = views.weight[:, :1] * views.scored.any(1)
        advantage, used = views.advantages[:, :1].expand_as(weight), weight != 0
        policy = (weight * clipped_surrogate(log_ratio, advantage, config.epsilon, config.epsilon_high)).sum()
        loss, kl_sum, count = policy, 0.0, float(used.sum())
        if config.beta:
            kl = kl_estimate(config.kl, logp, self.estimate(reference.token_logp, views))
            loss = policy + config.beta * (weight * kl).sum()
            kl_sum = float((kl.detach() * used).sum())
        log_ratio = log_ratio.detach()
        clipped = is_clipped(log_ratio, advantage, config.epsilon, config.epsilon_high) & used
        metrics = {
            "loss/policy": (float(policy.detach()), 0.0),
            "loss/clip_fraction": (float(clipped.sum()), count),
            "loss/ratio": (float((log_ratio.exp() * used).sum()), count),
            "loss/kl": (kl_sum, count),
        }
        return LossOutput(loss, metrics)


_SMALLEST_COUNT = 1e-9


def masked_prompt(trajectory: Trajectory, step: int, rate: float) -> Bool[Tensor, "batch prompt"]:
    """Each token of a prompt masked with probability ``rate`` on its own.

    Places count from the prompt's end, so that what is masked does not depend on how far the batch is padded.
    """
    uniform = noise.uniform(trajectory.seeds, noise.VIEWS, step, trajectory.prompt_ids.shape[1])
    return (uniform.flip(1) < rate) & trajectory.prompt_mask


def masked_views(
    trajectory: Trajectory,
    masked: Bool[Tensor, "batch views length"],
    scored: Bool[Tensor, "batch views length"],
    weight: Float[Tensor, "batch views"],
    advantages: Float[Tensor, "batch"],
    prompt_masked: Bool[Tensor, "batch views prompt"] | None = None,
) -> Views:
    """Views of the finished completions with some of their tokens masked, and some of the prompt's."""
    canvas = torch.where(masked, trajectory.mask_token_id, trajectory.final[:, None])
    prompts = trajectory.prompt_ids[:, None].expand(-1, canvas.shape[1], -1)
    if prompt_masked is not None:
        real = trajectory.prompt_mask[:, None]
        prompts = torch.where(prompt_masked & real, trajectory.mask_token_id, prompts)
    ones = torch.ones_like(trajectory.completion_mask)
    dtype = trajectory.entropy.dtype
    return Views(
        inputs=torch.cat([prompts, canvas], dim=2),
        attention_mask=torch.cat([trajectory.prompt_mask, ones], dim=1),
        targets=trajectory.final,
        scored=scored,
        weight=weight.to(dtype),
        advantages=advantages[:, None].expand_as(weight).to(dtype),
        step=torch.zeros_like(weight, dtype=torch.long),
        completion_length=trajectory.completion_mask.sum(1),
    )


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
