"""Canvases on which log-probabilities are asked for: of a recorded denoising, or of a text masked anew."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from egspo.ops import noise
from egspo.types import Completions, Steps, Trajectory, Views


def masked_prompt(completions: Completions, step: int, rate: float) -> Bool[Tensor, "batch prompt"]:
    """Each token of a prompt masked with probability ``rate`` on its own.

    Places count from the prompt's end, so that what is masked does not depend on how far the batch is padded.
    """
    uniform = noise.uniform(completions.seeds, noise.VIEWS, step, completions.prompt_ids.shape[1])
    return (uniform.flip(1) < rate) & completions.prompt_mask


def masked_views(
    completions: Completions,
    masked: Bool[Tensor, "batch views length"],
    scored: Bool[Tensor, "batch views length"],
    weight: Float[Tensor, "batch views"],
    advantages: Float[Tensor, "batch"],
    prompt_masked: Bool[Tensor, "batch views prompt"] | None = None,
) -> Views:
    """Views of the finished completions with some of their tokens masked, and some of the prompt's."""
    canvas = torch.where(masked, completions.mask_token_id, completions.final[:, None])
    prompts = completions.prompt_ids[:, None].expand(-1, canvas.shape[1], -1)
    if prompt_masked is not None:
        real = completions.prompt_mask[:, None]
        prompts = torch.where(prompt_masked & real, completions.mask_token_id, prompts)
    ones = torch.ones_like(completions.completion_mask)
    dtype = completions.dtype
    return Views(
        inputs=torch.cat([prompts, canvas], dim=2),
        attention_mask=torch.cat([completions.prompt_mask, ones], dim=1),
        targets=completions.final[:, None].expand_as(canvas),
        scored=scored,
        weight=weight.to(dtype),
        advantages=advantages[:, None].expand_as(weight).to(dtype),
        step=torch.zeros_like(weight, dtype=torch.long),
        completion_length=completions.completion_mask.sum(1),
    )


def span_views(
    trajectory: Trajectory,
    first: Steps,
    end: Int[Tensor, "batch chosen"],
    advantages: Float[Tensor, "batch steps"],
) -> Views:
    """Views of the states before the steps ``first``, scoring the tokens of the steps from there to ``end``.

    ``end`` is exclusive. Each view has weight 1 and its first step's advantage.
    """
    canvas = trajectory.states_at(first.index)
    prompts = trajectory.prompt_ids[:, None].expand(-1, canvas.shape[1], -1)
    revealed = trajectory.reveal_step[:, None]
    ones = torch.ones_like(trajectory.completion_mask)
    dtype = trajectory.dtype
    return Views(
        inputs=torch.cat([prompts, canvas], dim=2),
        attention_mask=torch.cat([trajectory.prompt_mask, ones], dim=1),
        targets=trajectory.final[:, None].expand_as(canvas),
        scored=(revealed >= first.index[:, :, None]) & (revealed < end[:, :, None]) & first.mask[:, :, None],
        weight=first.mask.to(dtype),
        advantages=(advantages.gather(1, first.index) * first.mask).to(dtype),
        step=first.index,
    )


def step_views(trajectory: Trajectory, steps: Steps, advantages: Float[Tensor, "batch steps"]) -> Views:
    """Views that show chosen denoising steps, scoring what each step did.

    Each has weight 1, or the importance of a step that was sampled from another distribution. The choice of
    positions is scored where it is a draw that the policy shapes (Plackett-Luce).
    """
    places = trajectory.draws_positions
    views = span_views(trajectory, steps, steps.index + 1, advantages)
    weight = views.weight
    if trajectory.importance is not None:
        weight = weight * trajectory.importance.gather(1, steps.index)
    return replace(
        views,
        weight=weight,
        order=_draw_order(trajectory, steps) if places else None,
        old_token_logp=trajectory.token_logp[:, None] * views.scored,
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
