"""A trajectory that nothing denoised, to ask an objective what it would evaluate."""

import torch

from egspo.config import SamplerConfig
from egspo.ops.reveal import completion_mask, reveal_schedule
from egspo.types import Proxy, Trajectory


def made_up_trajectory(sampler: SamplerConfig, rows: int, proxy: Proxy | None) -> Trajectory:
    """A trajectory that reveals from left to right, most uncertain at first."""
    length = sampler.max_completion_length
    counts = [n for *_, n in reveal_schedule(length, sampler.block_length, sampler.diffusion_steps)]
    step = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.cat([torch.arange(n) for n in counts])
    final = torch.ones(rows, length, dtype=torch.long)
    return Trajectory(
        prompt_ids=final[:, :0],
        prompt_mask=final[:, :0].bool(),
        final=final,
        reveal_step=step.expand(rows, -1),
        reveal_order=order.expand(rows, -1),
        token_logp=torch.zeros(rows, length),
        position_logp=torch.zeros(rows, len(counts)),
        entropy=torch.linspace(1.0, 0.0, len(counts)).expand(rows, -1),
        score_norm=torch.ones(rows, len(counts)),
        one_step=torch.ones(rows, len(counts), length, dtype=torch.long) if proxy else None,
        completion_mask=completion_mask(final, (0,)),
        last_step=torch.full((rows,), len(counts) - 1),
        steps_taken=torch.full((rows,), len(counts)),
        seeds=torch.arange(rows),
        mask_token_id=0,
        block_length=sampler.block_length,
        draws_positions=sampler.draws_positions,
    )
