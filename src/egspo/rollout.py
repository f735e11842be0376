"""The only sampler, for training and evaluation alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.likelihood import guided_logits
from egspo.ops import noise
from egspo.ops.logprobs import acting_logp, draw, entropy, gather_logp, plackett_luce_logp
from egspo.ops.reveal import (
    choice_logits,
    completion_mask,
    last_informative_step,
    position_scores,
    random_order_logp,
    reveal_schedule,
)
from egspo.policy import Policy
from egspo.types import Trajectory


@dataclass(frozen=True)
class Generation:
    """Texts and how they came to be."""

    texts: list[str]
    trajectory: Trajectory


def generate(
    policy: Policy, prompts: Sequence, seed: int = 0, batch_size: int = 64, **settings
) -> Generation:
    """Complete prompts (texts or lists of chat messages).

    ``settings`` are those of the ``sampler`` section: ``max_completion_length, diffusion_steps, block_length,
    temperature, remasking, cfg_scale, …``. The same seed gives the same texts whatever ``batch_size``.

    Raises:
        ValueError: for impossible settings.
    """
    sampler = SamplerConfig(**settings)
    prompt_ids, prompt_mask = pad_prompts(policy, policy.encode_prompts(prompts))
    seeds = noise.sample_seeds(seed, 0, torch.arange(len(prompts), device=policy.device))
    trajectory = rollout(policy, prompt_ids, prompt_mask, seeds, sampler, batch_size=batch_size)
    return Generation(policy.decode(trajectory.final), trajectory)


def pad_prompts(
    policy: Policy, prompts: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "batch prompt"], Bool[Tensor, "batch prompt"]]:
    """Token ids padded on the left to one length, and which of them are real."""
    longest = max(len(prompt) for prompt in prompts)
    pad = policy.tokenizer.pad_token_id
    pad = policy.end_token_ids[0] if pad is None else pad
    ids = [[pad] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[False] * (longest - len(p)) + [True] * len(p) for p in prompts]
    return torch.tensor(ids, device=policy.device), torch.tensor(mask, device=policy.device)


@torch.no_grad()
def rollout(
    policy: Policy,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    seeds: Int[Tensor, "batch"],
    sampler: SamplerConfig,
    one_step: bool = False,
    batch_size: int = 256,
) -> Trajectory:
    """Denoise one completion for each row. What a row becomes depends on its seed, not on its batch.

    ``one_step`` also records the greedy one-step completion of every state, at the price of the output layer
    at all masked positions instead of those of the current block.

    Raises:
        FloatingPointError: if the policy's probabilities are not numbers.
    """
    parts = [
        _denoise(policy, ids, mask, seed, sampler, one_step)
        for ids, mask, seed in zip(
            prompt_ids.split(batch_size), prompt_mask.split(batch_size), seeds.split(batch_size), strict=True
        )
    ]
    trajectory = _concatenate(parts)
    if not bool(trajectory.token_logp.isfinite().all()):
        raise FloatingPointError(
            f"diverged: {policy.source} gives probabilities that are not numbers; train it anew with a lower "
            "optim.learning_rate, or go back to an earlier checkpoint"
        )
    return trajectory


@dataclass
class _Record:
    """What is written while a batch is denoised, one entry of each list a step."""

    canvas: Tensor
    places: list[Tensor] = field(default_factory=list)
    token_logp: list[Tensor] = field(default_factory=list)
    position_logp: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    one_step: list[Tensor] = field(default_factory=list)


def _denoise(policy, prompt_ids, prompt_mask, seeds, sampler: SamplerConfig, one_step: bool) -> Trajectory:
    length = sampler.max_completion_length
    canvas = torch.full((len(seeds), length), policy.mask_token_id, device=prompt_ids.device)
    record = _Record(canvas)
    attention = torch.cat([prompt_mask, torch.ones_like(canvas, dtype=torch.bool)], dim=1)
    schedule = reveal_schedule(length, sampler.block_length, sampler.diffusion_steps)
    for step, (start, end, count) in enumerate(schedule):
        positions = _hidden_positions(canvas == policy.mask_token_id, start, length if one_step else end)
        logits = guided_logits(
            policy,
            torch.cat([prompt_ids, canvas], dim=1),
            attention,
            positions + prompt_ids.shape[1],
            length,
            sampler.cfg_scale,
        )
        if one_step:
            record.one_step.append(_fill(canvas, positions, logits, policy.suppressed))
        # Positions ascend and every row has the same number of them in the block, so the block comes first.
        block = int((positions[0] < end).sum())
        _reveal(
            record, step, positions[:, :block], logits[:, :block], count, seeds, sampler, policy.suppressed
        )
    return _trajectory(record, policy, prompt_ids, prompt_mask, seeds, sampler)


def _hidden_positions(hidden: Tensor, start: int, end: int) -> Int[Tensor, "batch places"]:
    """Masked positions in [start, end), ascending; the schedule makes their number the same in every row."""
    _, place = hidden[:, start:end].nonzero(as_tuple=True)
    return (place + start).view(len(hidden), -1)


def _fill(canvas: Tensor, positions: Tensor, logits: Tensor, suppressed: tuple[int, ...]) -> Tensor:
    logits = logits.clone()
    logits[..., list(suppressed)] = -torch.inf
    return canvas.scatter(1, positions, logits.argmax(-1))


def _reveal(
    record: _Record, step, positions, logits, count, seeds, sampler: SamplerConfig, suppressed
) -> None:
    """One denoising step: draw tokens, choose positions, write both down."""
    length = record.canvas.shape[1]
    logp = acting_logp(logits, sampler.temperature, suppressed)
    untempered = logp if sampler.temperature in (0, 1) else acting_logp(logits, 1.0, suppressed)
    uniform = noise.uniform(seeds, noise.TOKENS, step, length).gather(1, positions)
    drawn = logp.argmax(-1) if sampler.temperature == 0 else draw(logp, uniform)
    uniform = noise.uniform(seeds, noise.POSITIONS, step, length).gather(1, positions)
    scores = position_scores(sampler.remasking, untempered, drawn, uniform, sampler.position_temperature)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    places = positions.gather(1, chosen)
    record.canvas.scatter_(1, places, drawn.gather(1, chosen))
    record.places.append(places)
    record.token_logp.append(gather_logp(logp, drawn).gather(1, chosen))
    record.position_logp.append(_position_logp(untempered, chosen, sampler))
    record.entropy.append(entropy(logp).gather(1, chosen).sum(1))


def _position_logp(untempered: Tensor, chosen: Tensor, sampler: SamplerConfig) -> Tensor:
    if sampler.remasking == "plackett_luce":
        order = torch.full(untempered.shape[:2], -1, device=chosen.device)
        order.scatter_(1, chosen, torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen))
        return plackett_luce_logp(choice_logits(untempered, sampler.position_temperature), order)
    if sampler.remasking == "random":
        constant = random_order_logp(untempered.shape[1], chosen.shape[1])
        return untempered.new_full((len(chosen),), constant)
    return untempered.new_zeros(len(chosen))


def _trajectory(
    record: _Record, policy, prompt_ids, prompt_mask, seeds, sampler: SamplerConfig
) -> Trajectory:
    mask = completion_mask(record.canvas, policy.end_token_ids)
    # Every position is revealed once, so a row's places are a permutation of the canvas.
    places = torch.cat(record.places, dim=1)
    steps = torch.cat([torch.full_like(p, step) for step, p in enumerate(record.places)], dim=1)
    ranks = torch.cat([torch.arange(p.shape[1], device=p.device).expand_as(p) for p in record.places], dim=1)
    reveal_step = torch.empty_like(places).scatter_(1, places, steps)
    token_logp = torch.cat(record.token_logp, dim=1)
    return Trajectory(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        final=record.canvas,
        reveal_step=reveal_step,
        reveal_order=torch.empty_like(places).scatter_(1, places, ranks),
        token_logp=torch.empty_like(token_logp).scatter_(1, places, token_logp),
        position_logp=torch.stack(record.position_logp, dim=1),
        entropy=torch.stack(record.entropy, dim=1),
        one_step=torch.stack(record.one_step, dim=1) if record.one_step else None,
        completion_mask=mask,
        last_step=last_informative_step(reveal_step, mask),
        seeds=seeds,
        mask_token_id=policy.mask_token_id,
        block_length=sampler.block_length,
        remasking=sampler.remasking,
    )


def _concatenate(parts: list[Trajectory]) -> Trajectory:
    first = parts[0]
    if len(parts) == 1:
        return first
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    return replace(first, **joined)
