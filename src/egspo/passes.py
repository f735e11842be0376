"""The passes of a run, each at its worst: what `egspo.memory` has counted on tensors without memory.

They repeat what the trainer, the sampler and `egspo.proxies` do with tensors, in the same order, so that as
much is alive at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from egspo import registry
from egspo.config import BaseRun, RLRun, SamplerConfig
from egspo.footprint import ShapePolicy
from egspo.likelihood import guided_logits
from egspo.models.layers import KVCache
from egspo.ops.logprobs import (
    acting_logp,
    draw,
    draw_several,
    entropy,
    exact_kl,
    gather_logp,
    low_confidence_logp,
    score_norm,
)
from egspo.ops.reveal import choice_logits, position_scores, reveal_schedule
from egspo.policy import Policy
from egspo.types import Proxy


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
    completions: int = 0
    """Of a whole rollout batch, whose states' completions at once stay until they are rewarded."""
    validation_rows: int = 0


def most_planned(sampler: SamplerConfig) -> int:
    """Positions that a step reveals by the schedule, at most."""
    length, block = sampler.max_completion_length, sampler.block_length
    return max(count for *_, count in reveal_schedule(length, block, sampler.diffusion_steps))


def update(policy: ShapePolicy, config: BaseRun, load: Load) -> None:
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


def generations(policy: ShapePolicy, config: BaseRun, load: Load) -> dict[str, Callable[[], None]]:
    """The passes that generate, by phase."""
    found = {}
    if load.rollout_rows:
        objective = registry.load("objectives", config.objective.name)(config.objective)
        found["rollout"] = _denoise(policy, config.sampler, load, load.rollout_rows, objective.proxy)
    if load.validation_rows:
        sampler = config.eval.sampler(config.sampler)
        found["validation"] = _denoise(policy, sampler, load, load.validation_rows, proxy=None)
    return found


def _denoise(
    policy: ShapePolicy, sampler: SamplerConfig, load: Load, rows: int, proxy: Proxy | None
) -> Callable[[], None]:
    """The first denoising steps, which have the most masked positions, as `egspo.denoising` does them.

    One, and with a cache another that computes a window; a step's logits are gone before the next begins.
    """
    prompt, length, block = load.prompt, sampler.max_completion_length, sampler.block_length
    cache = None if sampler.cache == "none" else KVCache()

    def step(window: tuple[int, int] | None) -> None:
        inputs, attention = _sequences(rows, prompt + length)
        beyond = proxy is not None and (window is None or sampler.cache == "prefix")
        positions = torch.full((rows, length if beyond else block), prompt, dtype=torch.long)

        def forward() -> Tensor:
            if cache is None:
                return guided_logits(policy, inputs, attention, positions, length, sampler.cfg_scale)
            return policy.logits(inputs, attention, positions, cache, window)

        logits = forward()
        if proxy is not None:
            _fill(logits, forward, proxy, sampler, policy.suppressed)
        _reveal(logits[:, :block], sampler, policy.suppressed)

    @torch.no_grad()
    def work() -> None:
        # Held to the end, like a rollout's.
        fillings = torch.zeros(_filled(load, sampler, proxy), dtype=torch.long)  # noqa: F841
        step(None)
        if cache is not None:
            step((prompt, prompt + (length if sampler.cache == "prefix" else block)))

    return work


def _filled(load: Load, sampler: SamplerConfig, proxy: Proxy | None) -> tuple[int, ...]:
    each = (sampler.diffusion_steps, proxy.num_samples or 1) if proxy else (0, 0)
    return (load.completions, *each, sampler.max_completion_length)


def _fill(
    logits: Tensor, forward: Callable[[], Tensor], proxy: Proxy, sampler: SamplerConfig, suppressed
) -> None:
    """As `egspo.proxies` does it; a third pass and all after it hold what the third does."""

    def allowed(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., list(suppressed)] = -torch.inf
        return logits

    if proxy.num_samples and sampler.temperature:
        logp = acting_logp(logits, sampler.temperature, suppressed)
        draw_several(logp, torch.zeros(*logits.shape[:2], proxy.num_samples, dtype=torch.float64))
        return
    for _ in range(min(proxy.num_passes, 3) - 1):
        allowed(logits).log_softmax(-1).max(-1)
        logits = forward()
    allowed(logits).argmax(-1)


def _reveal(logits: Tensor, sampler: SamplerConfig, suppressed: tuple[int, ...]) -> None:
    logp = acting_logp(logits, sampler.temperature, suppressed)
    untempered = logp if sampler.temperature in (0, 1) else acting_logp(logits, 1.0, suppressed)
    uniform = torch.zeros(logits.shape[:2], dtype=torch.float64)
    drawn = logp.argmax(-1) if sampler.temperature == 0 else draw(logp, uniform)
    position_scores(sampler.remasking, untempered, drawn, uniform, sampler.position_temperature)
    planned = sampler.confidence_threshold is None
    chosen = most_planned(sampler) if planned else sampler.block_length
    acted = logp[:, :chosen].clone()
    entropy(acted)
    score_norm(acted, drawn[:, :chosen])


def _sequences(rows: int, length: int) -> tuple[Tensor, Tensor]:
    inputs = torch.zeros(rows, length, dtype=torch.long)
    return inputs, torch.ones_like(inputs, dtype=torch.bool)
