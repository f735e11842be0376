"""The gradient of the expected reward of a small task by enumeration: every draw of every state."""

import math

import torch
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.ops.logprobs import acting_logp, gather_logp
from egspo.ops.reveal import position_scores, reveal_schedule
from egspo.policy import Policy
from egspo.rollout import pad_prompts
from gradient.probe import Probe

MOST_DRAWS = 1_000_000
ENUMERABLE = ("low_confidence", "top_prob", "entropy", "margin", "left_to_right")
"""Rules whose choice of positions is a function of the state and of the tokens drawn."""


def enumerated_ascent(probe: Probe) -> Tensor:
    """Gradient of the mean over the training problems of the expected reward of a completion.

    Raises:
        ValueError: if positions are drawn, or a state has too many draws.
    """
    for parameter in probe.parameters:
        parameter.grad = None
    problems = probe.problems
    for prompt, encoded in zip(problems.prompts, problems.encoded, strict=True):
        finals, chance = outcomes(probe.policy, encoded, probe.config.sampler)
        rewards, _, _ = probe.scorer.final([prompt] * len(finals), probe.policy.decode(finals))
        expected = (chance * torch.tensor(rewards, dtype=chance.dtype)).sum()
        # A loss is what is minimised.
        (-expected / len(problems)).backward()
    return probe.ascent()


def outcomes(policy: Policy, prompt: list[int], sampler: SamplerConfig) -> tuple[Tensor, Tensor]:
    """Every completion that a prompt can get, and its probability (with its graph)."""
    if sampler.remasking not in ENUMERABLE:
        raise ValueError(
            f"sampler.remasking: {sampler.remasking!r} draws positions too; enumerate one of "
            f"{', '.join(ENUMERABLE)}"
        )
    length = sampler.max_completion_length
    prompt_ids, _ = pad_prompts(policy, [prompt])
    canvases, chance = torch.full((1, length), policy.mask_token_id), torch.ones(1)
    for start, end, count in reveal_schedule(length, sampler.block_length, sampler.diffusion_steps):
        inputs = torch.cat([prompt_ids.expand(len(canvases), -1), canvases], dim=1)
        logits = policy.logits(inputs)[:, -length:]
        followers = [
            _followers(policy, canvas, row, (start, end), count, sampler)
            for canvas, row in zip(canvases, logits, strict=True)
        ]
        reached = torch.cat([after for after, _ in followers])
        flows = torch.cat([p * share for p, (_, share) in zip(chance, followers, strict=True)])
        canvases, which = reached.unique(dim=0, return_inverse=True)
        chance = torch.zeros(len(canvases)).index_add(0, which, flows)
    return canvases, chance


def _followers(policy, canvas, logits, block, count, sampler) -> tuple[Tensor, Tensor]:
    """The states that may follow one, with their probabilities; a state may come more than once."""
    hidden = (canvas == policy.mask_token_id).nonzero().squeeze(1)
    hidden = hidden[(hidden >= block[0]) & (hidden < block[1])]
    tokens = torch.tensor([v for v in range(logits.shape[-1]) if v not in policy.suppressed])
    number = len(tokens) ** len(hidden)
    if number > MOST_DRAWS:
        raise ValueError(
            f"sampler.max_completion_length: {len(canvas)} gives a state {number} draws; use fewer than "
            f"{MOST_DRAWS}, that is about {math.floor(math.log(MOST_DRAWS, len(tokens)))} positions"
        )
    drawn = torch.cartesian_prod(*[tokens] * len(hidden)).view(number, -1)
    logp = acting_logp(logits[hidden], sampler.temperature, policy.suppressed)
    untempered = acting_logp(logits[hidden], 1.0, policy.suppressed).detach()
    chance = gather_logp(logp.expand(number, -1, -1), drawn).sum(1).exp()
    unused = torch.zeros(drawn.shape, dtype=torch.float64)
    scores = position_scores(sampler.remasking, untempered.expand(number, -1, -1), drawn, unused, 1.0)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    after = canvas.expand(number, -1).scatter(1, hidden[chosen], drawn.gather(1, chosen))
    return after, chance
