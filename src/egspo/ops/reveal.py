"""Which positions a denoising step reveals: schedule, confidences, choice."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from egspo.ops.logprobs import entropy, gather_logp

Remasking = Literal[
    "low_confidence", "top_prob", "plackett_luce", "random", "entropy", "margin", "left_to_right"
]
REMASKING = get_args(Remasking)


def reveal_schedule(length: int, block_length: int, num_steps: int) -> list[tuple[int, int, int]]:
    """(first position, end, number of positions to reveal) of every step, blocks from left to right.

    Steps are shared evenly among blocks and a block's positions evenly among its steps, the first steps
    taking one more where it does not divide (LLaDA, arXiv 2502.09992).
    """
    num_blocks = length // block_length
    steps_per_block = num_steps // num_blocks
    base, rest = divmod(block_length, steps_per_block)
    counts = [base + (k < rest) for k in range(steps_per_block)]
    return [(b * block_length, (b + 1) * block_length, n) for b in range(num_blocks) for n in counts]


def position_scores(
    rule: Remasking,
    logp: Float[Tensor, "batch places vocab"],
    drawn: Int[Tensor, "batch places"],
    uniform: Float64[Tensor, "batch places"],
    position_temperature: float,
) -> Float[Tensor, "batch places"]:
    """Score of each candidate position, highest revealed first. ``logp`` is untempered.

    ``low_confidence`` looks at the tokens that were drawn, all other rules at the state alone (so that the
    tokens of the step are scored exactly by their log-probabilities).
    """
    places = logp.shape[1]
    match rule:
        case "low_confidence":
            return gather_logp(logp, drawn)
        case "top_prob":
            return logp.amax(-1)
        case "plackett_luce":
            return choice_logits(logp, position_temperature) - torch.log(-torch.log(uniform))
        case "random":
            return uniform
        case "entropy":
            return -entropy(logp)
        case "margin":
            best = logp.exp().topk(2, dim=-1).values
            return best[..., 0] - best[..., 1]
        case "left_to_right":
            return -torch.arange(places, device=logp.device, dtype=logp.dtype).expand(logp.shape[:2])


def choice_logits(
    logp: Float[Tensor, "*batch vocab"], position_temperature: float
) -> Float[Tensor, "*batch"]:
    """Plackett-Luce logits of positions: the untempered top probability over ``position_temperature``."""
    return logp.amax(-1).exp() / position_temperature


def random_order_logp(num_candidates: int, num_revealed: int) -> float:
    """Log-probability of an ordered uniform draw without replacement."""
    remaining = torch.arange(num_candidates, num_candidates - num_revealed, -1, dtype=torch.float64)
    return float(-remaining.log().sum())


def completion_mask(
    final: Int[Tensor, "batch length"], end_token_ids: tuple[int, ...]
) -> Bool[Tensor, "batch length"]:
    """True up to and including the first end token."""
    is_end = torch.isin(final, torch.tensor(end_token_ids, device=final.device))
    return is_end.long().cumsum(1) - is_end.long() == 0


def last_informative_step(
    reveal_step: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
) -> Int[Tensor, "batch"]:
    """The last step that reveals a token of the completion; whatever comes later cannot change the text."""
    return reveal_step.masked_fill(~mask, 0).amax(1)
