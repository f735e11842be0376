"""What a run will hold in memory at its worst, predicted from its configuration before anything is loaded.

    peak = weights + reference + adapter + optimizer + max(gradients + activations, rollout, validation)

The first four stay for the whole run and are counted from the shapes of the parameters. The phases are dry
runs of one pass each (`egspo.footprint`); docs/memory.md says what stands behind every part.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from egspo import registry
from egspo.config import BaseRun, RLRun, SamplerConfig, SFTRun
from egspo.footprint import ShapePolicy, build_shape, peak_bytes
from egspo.madeup import made_up_trajectory
from egspo.passes import Load, generations, most_planned, update
from egspo.types import Steps

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A 4-bit weight: half a byte, a scale of one byte for 64 weights, and one of four bytes for 256 of those."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they are for."""

    weights: int
    reference: int
    """A frozen copy of the weights, for a KL term without an adapter."""
    adapter: int
    optimizer: int
    """Two moments for each trainable weight, in its own precision."""
    gradients: int
    load: Load
    activations: int = 0
    """What an update holds at its worst beyond all of the above."""
    rollout: int = 0
    """What a rollout holds at its worst; no gradients are kept then."""
    validation: int = 0

    @property
    def resident(self) -> int:
        return self.weights + self.reference + self.adapter + self.optimizer

    @property
    def update(self) -> int:
        return self.gradients + self.activations

    @property
    def peak(self) -> int:
        return self.resident + max(self.update, self.rollout, self.validation)


PHASES = ("update", "rollout", "validation")


def predict(config: BaseRun, prompt: int, ranks: int = 1, phases: Collection[str] = PHASES) -> Memory:
    """What a run needs on each of ``ranks`` processes, its prompts padded to ``prompt`` tokens.

    Phases that are not asked for cost no dry run and show as 0.

    Raises:
        ValueError: if the model or adapter cannot be found, or is of an unknown kind.
    """
    load = load_of(config, prompt, ranks)
    policy = build_shape(config.model, max_number_token(config))
    trainable = [p for p in policy.model.parameters() if p.requires_grad]
    held = sum(_size(p) for p in trainable)
    adapter = held if is_adapted(config) else 0
    weights, unpacked = _weights(policy, config)
    copied = isinstance(config, RLRun) and config.objective.beta > 0 and not adapter
    memory = Memory(
        weights=weights,
        reference=weights if copied else 0,
        adapter=adapter,
        optimizer=2 * held,
        # Data-parallel buckets hold a second copy of the gradients.
        gradients=held * (2 if ranks > 1 else 1),
        load=load,
    )
    if "update" in phases:
        held_most = peak_bytes(policy, lambda: update(policy, config, load), load.several)
        made = held_most + unpacked - (0 if load.several else held)
        memory = replace(memory, activations=max(made, _step_bytes(trainable)))
    for phase, work in generations(policy, config, load).items():
        if phase in phases:
            memory = replace(memory, **{phase: peak_bytes(policy, work, False) + unpacked})
    return memory


def max_number_token(config: BaseRun) -> int | None:
    """What a tiny tokenizer made for the run's task is asked to have."""
    task = registry.make_task(config.task) if config.task else None
    return task.max_number_token if task else None


def is_adapted(config: BaseRun) -> bool:
    return config.model.use_peft or config.model.adapter is not None


# ---- how much goes through at a time -------------------------------------------------------------------


def load_of(config: BaseRun, prompt: int, ranks: int = 1) -> Load:
    """The largest microbatch, rollout and validation that a configuration leads to on one rank."""
    if isinstance(config, SFTRun):
        share = -(-config.sft.batch_size // ranks)
        rows = min(share, config.sft.microbatch_size)
        validated = _validation_rows(config, ranks) if config.sft.eval_steps else 0
        length = config.sampler.max_completion_length
        return Load(prompt, rows, length, share > rows, validation_rows=validated)
    train = config.train
    completions = max(1, train.prompts_per_step // ranks) * train.num_generations
    rows, canvases, places = _canvases(config, completions, ranks)
    return Load(
        prompt=prompt,
        update_rows=min(rows, canvases),
        places=places,
        several=canvases > rows,
        rollout_rows=min(train.rollout_batch_size, completions),
        completions=completions,
        validation_rows=_validation_rows(config, ranks) if train.eval_steps else 0,
    )


def _validation_rows(config: BaseRun, ranks: int) -> int:
    limit = config.eval.limit
    return config.eval.batch_size if limit is None else min(config.eval.batch_size, -(-limit // ranks))


def _canvases(config: RLRun, completions: int, ranks: int) -> tuple[int, int, int]:
    """Canvases of a microbatch and of a whole optimizer step, and places scored on one.

    The objective is asked for the views of a group that was made up.
    """
    train = config.train
    objective = registry.load("objectives", config.objective.name)(config.objective)
    trajectory = made_up_trajectory(config.sampler, train.num_generations, objective.proxy)
    advantages = torch.ones_like(trajectory.entropy)
    steps = objective.select(trajectory, advantages)
    if train.update_split == "steps":
        parts = train.updates_per_rollout
        steps = Steps(steps.index.chunk(parts, 1)[0], steps.mask.chunk(parts, 1)[0])
    else:
        completions = -(-objective.num_replayed // ranks) or completions // train.updates_per_rollout
    views = objective.views(trajectory, steps, advantages, 0)
    asked = views.scored if views.order is None else views.scored | (views.order > -2)
    each, drawn = views.scored.shape[1], max(1, int(asked.sum(-1).max()))
    if config.sampler.confidence_threshold is not None:
        drawn = _at_most(drawn, config.sampler)
    places = objective.max_scored(config.sampler) or drawn
    rows = max(1, train.microbatch_size // each) * each if objective.coupled else train.microbatch_size
    return rows, max(1, completions) * each, places


def _at_most(drawn: int, sampler: SamplerConfig) -> int:
    """Positions scored on a canvas where every step that it takes them from may reveal a whole block."""
    length, block = sampler.max_completion_length, sampler.block_length
    return min(length, drawn * block // most_planned(sampler))


# ---- what stays ----------------------------------------------------------------------------------------


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weights(policy: ShapePolicy, config: BaseRun) -> tuple[int, int]:
    """Bytes of the weights without adapter, and of the largest one unpacked from 4 bits (0: none is packed).

    Packed are the linear layers but the last; all else stays in ``model.dtype``.
    """
    frozen = [p for p in policy.model.parameters() if not (p.requires_grad and is_adapted(config))]
    total = sum(_size(p) for p in frozen)
    if not config.model.load_in_4bit:
        return total, 0
    inner = policy.model.get_base_model() if is_adapted(config) else policy.model
    head = inner.get_output_embeddings()
    linear = (m for m in inner.modules() if isinstance(m, nn.Linear) and m is not head)
    packed = [m.weight for m in linear if any(m.weight is p for p in frozen)]
    saved = sum(_size(p) - int(p.numel() * NF4_BYTES) for p in packed)
    return total - saved, max(2 * p.numel() for p in packed)


def _step_bytes(trainable: list[Tensor]) -> int:
    """What AdamW's step makes besides its state: a root of all second moments at once on CUDA, else the
    root and the denominator of one weight at a time."""
    sizes = [_size(p) for p in trainable]
    return sum(sizes) if torch.cuda.is_available() else 2 * max(sizes, default=0)
