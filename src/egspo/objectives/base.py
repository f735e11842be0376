"""What an objective is: five pure hooks over one bundle of records, called in this order by the trainer.

candidates -> advantages -> select -> views -> loss. An objective never sees a model, a rank or a counter.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from egspo.ops.advantages import Baseline, group_spread, subtract_baseline
from egspo.ops.token_loss import TOKEN_METRICS, TokenKL, clipped_token_loss
from egspo.types import LossOutput, Proxy, Rewards, Scores, Steps, Trajectory, Views
from egspo.views import span_views


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
    def proxy(self) -> Proxy | None:
        """How the sampler shall complete states at once for ``candidates``; None if it need not."""
        return None

    @property
    def num_replayed(self) -> int:
        """Completions of this and earlier rollouts, those of positive advantage, that an update trains on in
        place of the rollout batch, over all ranks; 0: the batch itself."""
        return 0

    @property
    def max_kept(self) -> int:
        """Completions kept to be replayed, at most."""
        return 1

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
        return (views.weight != 0) & self.useful(views.advantages)

    def useful(self, advantages: Float[Tensor, "batch chosen"]) -> Bool[Tensor, "batch chosen"]:
        """Where a gradient can come from: an advantage, or the KL term."""
        return (advantages != 0) | (self.config.beta > 0)

    @abstractmethod
    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        """The loss of a microbatch: the sum over views of weight times loss."""


class SequenceConfig(ObjectiveConfig):
    """Settings of objectives that judge a completion as a whole."""

    baseline: Baseline = Field("same_step", description="of the group; same_step: its mean")
    scale: Literal["none", "std"] = Field(
        "none", description="std: divide advantages by the standard deviation of their group"
    )


class OutcomeObjective(Objective):
    """One advantage a completion, for all its steps and tokens: its final reward against its group's."""

    config: SequenceConfig

    def advantages(self, rewards: Rewards) -> Float[Tensor, "batch steps"]:
        returns = rewards.final.double()[:, None]
        everyone = torch.ones_like(returns, dtype=torch.bool)
        size = rewards.num_generations
        advantages = subtract_baseline(returns, everyone, size, self.config.baseline)
        if self.config.scale == "std":
            advantages = advantages / group_spread(returns, size)
        return advantages.expand(len(returns), rewards.num_steps)


class SequenceObjective(OutcomeObjective):
    """Log-probabilities on canvases drawn for the purpose, whatever the rollout.

    ``views`` draws them anew for each pass over a rollout batch, from the samples' seeds (stream
    `egspo.ops.noise.VIEWS`, step = the pass).
    """

    tempered = False
    wants_old_scores = True

    def problems(self, sampler: Any, train: Any) -> list[str]:
        found = super().problems(sampler, train)
        if train.update_split == "steps":
            found.append(
                f"train.update_split: steps, but {self.name} trains on whole completions; use samples"
            )
        return found + unscored(self.name, sampler)

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """No step: what is trained on is the completion."""
        none = torch.zeros(len(advantages), 1, dtype=torch.long, device=advantages.device)
        return Steps(none, none > 0)


def indivisible(number: int, what: str, train: Any) -> list[str]:
    """Why what a sample is trained on cannot be shared out evenly over the updates of a rollout."""
    if train.update_split != "steps" or number % train.updates_per_rollout == 0:
        return []
    return [f"train.updates_per_rollout: {train.updates_per_rollout} does not divide the {number} {what}"]


def unscored(name: str, sampler: Any) -> list[str]:
    """The problem of an objective that scores tokens only, if the sampler draws positions that count."""
    if not sampler.score_positions:
        return []
    return [f"sampler.score_positions: True, but {name} scores no choice of positions; use false"]


class SliceObjective(OutcomeObjective):
    """The recorded denoising in slices of several steps, each scored in one pass from its first step's state.

    A token of a slice's later steps is scored on a canvas that shows less than the one it was drawn on: its
    log-probability is not the rollout's, so that a ratio needs the old policy's on the same canvas. Only
    tokens of the completion are scored, and slices without any are left out. Views are independent, and
    ``train.update_split: steps`` shares slices out over updates.
    """

    tempered = False
    wants_old_scores = True

    @abstractmethod
    def boundaries(self, num_steps: int) -> list[int]:
        """First steps of all slices in ascending order, from 0 on, and then ``num_steps``."""

    def problems(self, sampler: Any, train: Any) -> list[str]:
        found = super().problems(sampler, train)
        found += indivisible(self.num_views(sampler), "slices", train)
        if sampler.cache != "none":
            found.append(
                f"sampler.cache: {sampler.cache!r}, but {self.name} scores slices, which cannot be corrected "
                "for what a cached sampler does; use none"
            )
        return found + unscored(self.name, sampler)

    def num_views(self, sampler: Any) -> int:
        return len(self.boundaries(sampler.diffusion_steps)) - 1

    def select(self, trajectory: Trajectory, advantages: Float[Tensor, "batch steps"]) -> Steps:
        """The first steps of all slices that reveal something of the completion."""
        first = torch.tensor(self.boundaries(trajectory.num_steps)[:-1], device=trajectory.final.device)
        index = first.expand(len(trajectory.final), -1)
        everything = Steps(index, torch.ones_like(index, dtype=torch.bool))
        mask = self.slices(trajectory, everything, advantages).scored.any(-1)
        return Steps(index.masked_fill(~mask, 0), mask)

    def slices(self, trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"]) -> Views:
        """Views of weight 1 of the slices that begin at ``steps``; old log-probabilities are left out."""
        edges = torch.tensor(self.boundaries(trajectory.num_steps), device=steps.index.device)
        ends = edges[torch.searchsorted(edges, steps.index.contiguous(), right=True)]
        views = span_views(trajectory, steps, ends, advantages)
        return replace(views, scored=views.scored & trajectory.completion_mask[:, None])


class ClipConfig(ObjectiveConfig):
    """Settings of objectives that clip the ratio of each token on its own."""

    epsilon: float = Field(0.2, ge=0, lt=1, description="clip below")
    epsilon_high: float = Field(0.2, ge=0, description="clip above")
    kl: TokenKL = Field("k3", description="estimator of the KL to the reference")


class ClipObjective(Objective):
    """One clipped ratio for each token that a view scores (`egspo.ops.token_loss`)."""

    metric_keys = TOKEN_METRICS
    config: ClipConfig

    def token_weight(self, scores: Scores, views: Views) -> Float[Tensor, "batch views length"] | None:
        """What each token's terms are multiplied by, beside its view's weight; None for 1."""
        return None

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        config = self.config
        return clipped_token_loss(
            scores,
            reference,
            views,
            token_weight=self.token_weight(scores, views),
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            kl=config.kl,
        )


SMALLEST_COUNT = 1e-9
"""Stands for a count of 0 in a denominator: an update may hold nothing of what an objective counts."""


class EstimateConfig(ClipConfig, SequenceConfig):
    """Settings of objectives that clip one ratio for each token of a completion."""

    aggregation: Literal["tokens", "completions"] = Field(
        "tokens", description="mean over all tokens of the update, or over completions of each one's mean"
    )


class EstimateObjective(ClipObjective, SequenceObjective):
    """GRPO (arXiv 2402.03300) on estimates of a completion's log-probabilities, token by token.

    For the scored tokens k of N completions o_i of n_i tokens, and ``rho = exp(logp - old)`` of estimates,

        L = (1/D) sum_i w_i sum_k [ -min(rho_ik A_i, clip(rho_ik, 1 - eps, 1 + eps_high) A_i) + beta KL_ik ]

    ``aggregation = tokens``: w_i = 1, D the number of scored tokens; ``completions``: w_i = 1 / n_i,
    D = N. A subclass draws the views, weighs each sample's first one by `sample_weight`, and says in
    `estimate` what its views make of a token.
    """

    config: EstimateConfig

    def estimate(
        self, token_logp: Float[Tensor, "batch views length"], views: Views
    ) -> Float[Tensor, "batch length"]:
        """A completion's log-probabilities from those on its views; default: those on its only one."""
        return token_logp[:, 0]

    def sample_weight(self, tokens: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        """w_i, from the places of o_i's tokens; 0 without any."""
        count = tokens.sum(1)
        if self.config.aggregation == "tokens":
            return (count > 0).double()
        return torch.where(count > 0, 1 / count.double(), 0.0)

    def denominator(self, views: Views) -> float:
        if self.config.aggregation == "tokens":
            # Masks may leave a whole update without a token; its weights are 0 then, and stay so.
            return max(float(views.scored.any(1).sum()), SMALLEST_COUNT)
        return super().denominator(views)

    def loss(self, scores: Scores, reference: Scores | None, views: Views) -> LossOutput:
        """That of one view a sample, which scores what the estimates are of."""
        old = views.old_token_logp
        whole = replace(
            views,
            inputs=views.inputs[:, :1],
            targets=views.targets[:, :1],
            scored=views.scored.any(1, keepdim=True),
            weight=views.weight[:, :1],
            advantages=views.advantages[:, :1],
            step=views.step[:, :1],
            old_token_logp=None if old is None else self.estimate(old, views)[:, None],
            old_position_logp=None,
        )
        reference = None if reference is None else self._estimated(reference, views)
        return super().loss(self._estimated(scores, views), reference, whole)

    def _estimated(self, scores: Scores, views: Views) -> Scores:
        return Scores(self.estimate(scores.token_logp, views)[:, None], scores.position_logp[:, :1])
