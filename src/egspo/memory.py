"""What a run will hold in memory at its worst, predicted from its configuration before anything is loaded.

    peak = weights + reference + adapter + optimizer + max(gradients + activations, rollout, validation)

The first four stay for the whole run and are counted from the shapes of the parameters. The phases are dry
runs of one pass each (`egspo.footprint`); docs/memory.md says what stands behind every part.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from egspo import registry
from egspo.config import BaseRun, RLRun, SamplerConfig, SFTRun
from egspo.evaluation import eval_sampler
from egspo.footprint import ShapePolicy, build_shape, peak_bytes
from egspo.likelihood import guided_logits
from egspo.madeup import made_up_trajectory
from egspo.models.layers import KVCache
from egspo.ops.logprobs import (
    acting_logp,
    draw,
    entropy,
    exact_kl,
    gather_logp,
    low_confidence_logp,
    score_norm,
)
from egspo.ops.reveal import choice_logits, position_scores, reveal_schedule
from egspo.policy import Policy
from egspo.types import Proxy, Steps

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A 4-bit weight: half a byte, a scale of one byte for 64 weights, and one of four bytes for 256 of those."""


@dataclass(frozen=True)
class Load:
    """How much goes through the model at a time, on one rank. Rows are sequences of ``prompt + length``."""

    prompt: int
    """Tokens of a padded prompt."""
    update_rows: int
    """Canvases a forward pass of an update."""
    places: int
    """Positions scored on a canvas, at most."""
    several: bool
    """Whether an optimizer step takes several such passes, so that gradients are there already."""
    rollout_rows: int = 0
    validation_rows: int = 0


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
        update = peak_bytes(policy, lambda: _update(policy, config, load), load.several)
        made = update + unpacked - (0 if load.several else held)
        memory = replace(memory, activations=max(made, _step_bytes(trainable)))
    for phase, work in _generations(policy, config, load).items():
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
        rows = -(-config.sft.batch_size // ranks)
        validated = _validation_rows(config, ranks) if config.sft.eval_steps else 0
        length = config.sampler.max_completion_length
        return Load(prompt, rows, length, False, validation_rows=validated)
    train = config.train
    completions = max(1, train.prompts_per_step // ranks) * train.num_generations
    rows, canvases, places = _canvases(config, completions, ranks)
    return Load(
        prompt=prompt,
        update_rows=min(rows, canvases),
        places=places,
        several=canvases > rows,
        rollout_rows=min(train.rollout_batch_size, completions),
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
    return min(length, drawn * block // _most_planned(sampler))


def _most_planned(sampler: SamplerConfig) -> int:
    """Positions that a step reveals by the schedule, at most."""
    length, block = sampler.max_completion_length, sampler.block_length
    return max(count for *_, count in reveal_schedule(length, block, sampler.diffusion_steps))


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


# ---- passes --------------------------------------------------------------------------------------------


def _update(policy: ShapePolicy, config: BaseRun, load: Load) -> None:
    """One microbatch of an update, as `egspo.likelihood.score` and the trainer evaluate it."""
    sampler, length = config.sampler, config.sampler.max_completion_length
    rl = isinstance(config, RLRun)
    if not rl:
        sampler = sampler.model_copy(update={"temperature": 1.0, "cfg_scale": 0.0, "remasking": "random"})
    inputs, attention = _sequences(load.update_rows, load.prompt + length)
    positions = torch.zeros(load.update_rows, load.places, dtype=torch.long)
    objective = registry.load("objectives", config.objective.name)(config.objective) if rl else None
    exact = rl and objective.wants_exact_kl

    def acting(who: Policy) -> tuple[Tensor, Tensor]:
        logits = guided_logits(who, inputs, attention, positions, length, sampler.cfg_scale)
        return logits, acting_logp(logits, sampler.temperature, who.suppressed)

    def scores() -> Tensor:
        logits, logp = acting(policy)
        total = gather_logp(logp, positions).sum()
        if exact:
            with policy.reference() as frozen:
                _, ref_logp = acting(frozen)
            total = total + exact_kl(logp, ref_logp).sum()
        if sampler.draws_positions:
            untempered = acting_logp(logits, 1.0, policy.suppressed)
            choice = choice_logits(untempered, sampler.position_temperature)
            if sampler.remasking == "low_confidence":
                choice = low_confidence_logp(logp, untempered, positions, positions)
            total = total + choice.sum()
        return total

    loss = scores()
    if rl and config.objective.beta and not exact:
        with policy.reference() as frozen:
            gather_logp(acting(frozen)[1], positions)
    loss.backward()


def _generations(policy: ShapePolicy, config: BaseRun, load: Load) -> dict[str, Callable[[], None]]:
    """The passes that generate, by phase."""
    found = {}
    if load.rollout_rows:
        objective = registry.load("objectives", config.objective.name)(config.objective)
        proxy, rows = objective.proxy, load.rollout_rows
        found["rollout"] = _denoise(policy, config.sampler, load.prompt, rows, proxy)
    if load.validation_rows:
        sampler = eval_sampler(config.sampler, config.eval)
        found["validation"] = _denoise(policy, sampler, load.prompt, load.validation_rows, proxy=None)
    return found


def _denoise(
    policy: ShapePolicy, sampler: SamplerConfig, prompt: int, rows: int, proxy: Proxy | None
) -> Callable[[], None]:
    """The first denoising steps, which have the most masked positions, as `egspo.denoising` does them.

    One, and with a cache another that computes a window; a step's logits are gone before the next begins.
    """
    length, block = sampler.max_completion_length, sampler.block_length
    cache = None if sampler.cache == "none" else KVCache()

    def step(window: tuple[int, int] | None) -> None:
        inputs, attention = _sequences(rows, prompt + length)
        beyond = proxy is not None and (window is None or sampler.cache == "prefix")
        positions = torch.full((rows, length if beyond else block), prompt, dtype=torch.long)
        if cache is None:
            logits = guided_logits(policy, inputs, attention, positions, length, sampler.cfg_scale)
        else:
            logits = policy.logits(inputs, attention, positions, cache, window)
        if proxy is not None:
            _fill(logits, proxy, sampler, policy.suppressed)
        _reveal(logits[:, :block], sampler, policy.suppressed)

    @torch.no_grad()
    def work() -> None:
        step(None)
        if cache is not None:
            step((prompt, prompt + (length if sampler.cache == "prefix" else block)))

    return work


def _fill(logits: Tensor, proxy: Proxy, sampler: SamplerConfig, suppressed: tuple[int, ...]) -> None:
    if proxy.num_samples and sampler.temperature:
        logp = acting_logp(logits, sampler.temperature, suppressed)
        draw(logp, torch.zeros(logits.shape[:2], dtype=torch.float64))
        return
    logits = logits.clone()
    logits[..., list(suppressed)] = -torch.inf
    logits.log_softmax(-1).max(-1) if proxy.num_passes > 1 else logits.argmax(-1)


def _reveal(logits: Tensor, sampler: SamplerConfig, suppressed: tuple[int, ...]) -> None:
    logp = acting_logp(logits, sampler.temperature, suppressed)
    untempered = logp if sampler.temperature in (0, 1) else acting_logp(logits, 1.0, suppressed)
    uniform = torch.zeros(logits.shape[:2], dtype=torch.float64)
    drawn = logp.argmax(-1) if sampler.temperature == 0 else draw(logp, uniform)
    position_scores(sampler.remasking, untempered, drawn, uniform, sampler.position_temperature)
    planned = sampler.confidence_threshold is None
    chosen = _most_planned(sampler) if planned else sampler.block_length
    acted = logp[:, :chosen].clone()
    entropy(acted)
    score_norm(acted, drawn[:, :chosen])


def _sequences(rows: int, length: int) -> tuple[Tensor, Tensor]:
    inputs = torch.zeros(rows, length, dtype=torch.long)
    return inputs, torch.ones_like(inputs, dtype=torch.bool)
