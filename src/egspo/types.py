"""The records that flow through the system, and the one legend of axis names.

Axes (batch first, always; nothing is permuted):

    batch       completions; the ``num_generations`` completions of one prompt are neighbours
    prompt      tokens of the padded prompt
    length      tokens of the canvas, that is of the completion (``max_completion_length``)
    sequence    prompt + length
    steps       denoising steps 0 .. T-1, in the order in which they happen
    chosen      steps picked out of ``steps`` (candidates, selected steps)
    views       canvases on which an objective asks for log-probabilities
    vocab       tokens of the vocabulary

Every record is frozen: a layer hands it on, nobody edits it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One problem of a task.

    ``messages`` are chat messages (``role``, ``content``); ``fields`` is what the grader reads (puzzle,
    numbers, …); ``solution`` is a gold completion, if one is known (SFT trains on it, tests grade it).
    """

    messages: tuple[Mapping[str, str], ...]
    fields: Mapping[str, Any]
    solution: str | None = None
    id: str = ""


@dataclass(frozen=True)
class Grade:
    """Verdict on one completion.

    ``correct`` is the benchmark's yes or no. ``parts`` are the reward parts by name, unweighted; one that
    does not apply is not among them. ``extracted`` is the answer that was read out of the text, ``reason``
    says in words why the verdict is what it is. ``counts`` holds (right, of) pairs of finer measures, for
    instance Sudoku cells.
    """

    correct: bool
    parts: Mapping[str, float]
    extracted: str | None
    reason: str
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """Denoising steps picked per sample; rows may pick fewer than ``chosen`` (``mask`` False, index 0)."""

    index: Int[Tensor, "batch chosen"]
    mask: Bool[Tensor, "batch chosen"]


@dataclass(frozen=True)
class Proxy:
    """How a state is completed at once, for a reward that stands for its value (`egspo.proxies`)."""

    num_samples: int = 0
    """Completions drawn from the step's logits, whose mean reward counts; 0: the greedy one."""
    num_passes: int = 1
    """Forward passes of a completion: the step's own, and others that see what it revealed."""
    own: bool = False
    """The one that the step itself drew, of which it revealed some."""

    def __post_init__(self):
        if (self.num_samples > 0) + (self.num_passes > 1) + self.own > 1:
            raise ValueError(
                f"num_samples: {self.num_samples} with num_passes {self.num_passes} and own {self.own}; "
                "use one of the three"
            )


def map_tensors(record, change):
    """A copy of a record with ``change`` applied to each of its tensors that has a batch axis."""
    return replace(record, **{f.name: _apply(getattr(record, f.name), change) for f in fields(record)})


def join_tensors(records):
    """One record of several, their tensors joined along the batch; what is no tensor is the first one's."""
    first = records[0]
    if len(records) == 1:
        return first
    return replace(first, **{f.name: _join([getattr(r, f.name) for r in records]) for f in fields(first)})


def _join(values):
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    return join_tensors(values) if isinstance(first, Steps) else first


def _apply(value, change):
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _apply(entry, change) for key, entry in value.items()}
    return map_tensors(value, change) if isinstance(value, Steps) else value


@dataclass(frozen=True)
class Completions:
    """Finished canvases after their prompts. ``seeds`` feed whatever is drawn for a completion."""

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    final: Int[Tensor, "batch length"]
    completion_mask: Bool[Tensor, "batch length"]
    """True up to and including the first end-of-text token."""
    seeds: Int[Tensor, "batch"]
    mask_token_id: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that go with them."""
        return torch.float32


@dataclass(frozen=True)
class Trajectory(Completions):
    """How a batch of completions came to be: enough to rebuild every state, nothing of size steps x vocab.

    A position is revealed exactly once, so ``reveal_step`` and the finished canvas determine all states.
    ``token_logp`` and ``entropy`` are those of the distribution that was *sampled* (temperature, guidance,
    suppressed tokens); at temperature 0, where that distribution is a point, those of temperature 1. Samples
    differ in the number of steps they took; all have room for ``steps``.
    """

    reveal_step: Int[Tensor, "batch length"]
    """The step that revealed each position."""
    reveal_order: Int[Tensor, "batch length"]
    """Rank of each position among those revealed in the same step (Plackett-Luce scores the ordered draw)."""
    token_logp: Float[Tensor, "batch length"]
    position_logp: Float[Tensor, "batch steps"]
    """Log-probability of the choice of positions; 0 where the rule is deterministic given the state."""
    entropy: Float[Tensor, "batch steps"]
    """Joint entropy of the tokens revealed at the step, in nats: the sum over its positions."""
    score_norm: Float[Tensor, "batch steps"]
    """Squared norm of the gradient of the step's token log-probabilities with respect to their logits."""
    one_step: Int[Tensor, "batch steps *samples length"] | None
    """Completion at once of every state, or several, if they were asked for (`Proxy`)."""
    last_step: Int[Tensor, "batch"]
    """Last informative step: after it only tokens behind the first end-of-text token are revealed."""
    steps_taken: Int[Tensor, "batch"]
    """What was left then lies behind an end token and was filled with end tokens, scored as certain."""
    block_length: int
    draws_positions: bool
    """Whether the choice of positions is a draw that the policy shapes, scored in ``position_logp``."""
    cache: str = "none"
    """How keys and values were cached. Then the distribution sampled is not the policy's own, and what
    is scored is the former until `egspo.likelihood.correct` puts the latter in its place."""
    importance: Float[Tensor, "batch steps"] | None = None
    """Truncated ratio of the policy to what was sampled from, of each corrected step; 1 elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        return self.entropy.dtype

    @property
    def num_steps(self) -> int:
        return self.entropy.shape[1]

    @property
    def states(self) -> Int[Tensor, "batch steps length"]:
        """The canvas before each step."""
        return self.states_at(
            torch.arange(self.num_steps, device=self.final.device).expand(len(self.final), -1)
        )

    @property
    def revealed(self) -> Bool[Tensor, "batch steps length"]:
        """Which positions each step reveals."""
        steps = torch.arange(self.num_steps, device=self.final.device)
        return self.reveal_step[:, None, :] == steps[None, :, None]

    @property
    def informative(self) -> Bool[Tensor, "batch steps"]:
        """Steps up to the last informative one; no later action can change the text."""
        steps = torch.arange(self.num_steps, device=self.final.device)
        return steps[None] <= self.last_step[:, None]

    @property
    def step_logp(self) -> Float[Tensor, "batch steps"]:
        """Log-probability of each step's whole action: its tokens and, where scored, its positions."""
        logp = torch.zeros_like(self.entropy)
        return logp.scatter_add(1, self.reveal_step, self.token_logp) + self.position_logp

    def states_at(self, index: Int[Tensor, "batch chosen"]) -> Int[Tensor, "batch chosen length"]:
        """The canvas before each of the given steps."""
        hidden = self.reveal_step[:, None, :] >= index[:, :, None]
        return torch.where(hidden, self.mask_token_id, self.final[:, None, :])

    def __getitem__(self, rows) -> "Trajectory":
        return map_tensors(self, lambda tensor: tensor[rows])


@dataclass(frozen=True)
class Rewards:
    """What a batch earned. Step values are rewards of one-step completions of the candidate states.

    A part is NaN where it does not apply to the sample.
    """

    final: Float[Tensor, "batch"]
    parts: Mapping[str, Float[Tensor, "batch"]]
    num_generations: int
    num_steps: int
    candidates: Steps | None = None
    step_values: Float[Tensor, "batch chosen"] | None = None
    score_norm: Float[Tensor, "batch steps"] | None = None
    """The trajectory's, 0 at steps that no longer shape the text."""
    seeds: Int[Tensor, "batch"] | None = None
    """The trajectory's."""


@dataclass(frozen=True)
class Views:
    """Canvases on which log-probabilities are asked for. A sample's views are its unit; ``weight`` 0 pads.

    The loss of a batch is the sum over views of ``weight`` times the view's loss: all denominators are
    global and sit in ``weight``, so that neither the microbatch nor the number of ranks changes a gradient.
    """

    inputs: Int[Tensor, "batch views sequence"]
    attention_mask: Bool[Tensor, "batch sequence"]
    targets: Int[Tensor, "batch views length"]
    """Tokens whose log-probabilities are asked for, at the places that are scored."""
    scored: Bool[Tensor, "batch views length"]
    weight: Float[Tensor, "batch views"]
    advantages: Float[Tensor, "batch views"]
    step: Int[Tensor, "batch views"]
    """Denoising step that each view shows (0 where an objective's views are not steps)."""
    order: Int[Tensor, "batch views length"] | None = None
    """For scored position choices: rank in the step's ordered draw, -1 for a candidate that was not drawn,
    -2 for a position that was no candidate."""
    old_token_logp: Float[Tensor, "batch views length"] | None = None
    old_position_logp: Float[Tensor, "batch views"] | None = None
    completion_length: Int[Tensor, "batch"] | None = None
    """Tokens up to each completion's end, of which views of finished completions mask some."""

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows) -> "Views":
        return map_tensors(self, lambda tensor: tensor[rows])


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of a policy on views; zero where a position is not scored."""

    token_logp: Float[Tensor, "batch views length"]
    position_logp: Float[Tensor, "batch views"]
    exact_kl: Float[Tensor, "batch views length"] | None = None
    """KL(policy || reference) of the whole next-token distribution, only if an objective asks for it."""

    @property
    def view_logp(self) -> Float[Tensor, "batch views"]:
        return self.token_logp.sum(-1) + self.position_logp


@dataclass(frozen=True)
class LossOutput:
    """A loss (a sum; its denominators are in the views' weights) and what to log.

    ``metrics`` maps a key to (sum, count) over the same tensors, so that a mean over any number of
    microbatches and ranks is exact.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, tuple[float, float]]
