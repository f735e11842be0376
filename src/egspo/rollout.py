"""The only sampler, for training and evaluation alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.denoising import denoise
from egspo.ops import noise
from egspo.policy import Policy
from egspo.types import Proxy, Trajectory, join_tensors


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


def check_sampler(policy: Policy, sampler: SamplerConfig, prompt_length: int) -> None:
    """What a sampler asks of a model, which a configuration alone does not show.

    Raises:
        ValueError: if the model keeps no keys and values, or is too short for prompt and canvas.
    """
    if sampler.cache != "none" and not policy.family.cacheable:
        raise ValueError(
            f"sampler.cache: {sampler.cache!r} needs keys and values that models of the family "
            f"{policy.family.name} do not give; use none"
        )
    total = prompt_length + sampler.max_completion_length
    if policy.max_length is not None and total > policy.max_length:
        raise ValueError(
            f"sampler.max_completion_length: {sampler.max_completion_length} after a prompt of "
            f"{prompt_length} tokens exceeds the model's {policy.max_length}; use at most "
            f"{max(0, policy.max_length - prompt_length)}, or shorter prompts"
        )


@torch.no_grad()
def rollout(
    policy: Policy,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    seeds: Int[Tensor, "batch"],
    sampler: SamplerConfig,
    proxy: Proxy | None = None,
    batch_size: int = 256,
    finished: Callable[[int, Trajectory], None] = lambda start, part: None,
) -> Trajectory:
    """Denoise one completion for each row. What a row becomes depends on its seed, not on its batch.

    With a ``proxy`` every state's completion at once is recorded, at the price of the output layer at all
    masked positions instead of those of the current block, and of the proxy's further passes. ``finished`` is
    called with each part of ``batch_size`` rows and the first of them, as soon as it is denoised.

    Raises:
        ValueError: if the model cannot do what the settings ask for.
        FloatingPointError: if the policy's probabilities are not numbers.
    """
    check_sampler(policy, sampler, prompt_ids.shape[1])
    if proxy is not None and proxy.num_passes > 1 and sampler.cache != "none":
        raise ValueError(
            f"num_passes: {proxy.num_passes} with sampler.cache {sampler.cache!r}, which keeps what was "
            "revealed and not what might be; use 1, or cache=none"
        )
    parts = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        part = denoise(policy, prompt_ids[rows], prompt_mask[rows], seeds[rows], sampler, proxy)
        _check_finite(policy, part)
        finished(start, part)
        parts.append(part)
    return join_tensors(parts)


def _check_finite(policy: Policy, trajectory: Trajectory) -> None:
    if not bool(trajectory.token_logp.isfinite().all()):
        raise FloatingPointError(
            f"diverged: {policy.source} gives probabilities that are not numbers; train it anew with a lower "
            "optim.learning_rate"
        )
