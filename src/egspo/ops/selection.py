"""Which denoising steps to train on (EGSPO, arXiv 2603.12554, section on entropy-guided step selection).

What is lost of the policy gradient by keeping a set S of steps is at most ``C sum_{t not in S} H_t``, H_t the
entropy of step t, so for a budget of K steps the K of highest entropy are kept. docs/method.md derives the
constant and says what changes where S depends on the actions.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from egspo.ops.noise import SELECTION, uniform
from egspo.types import Steps

Selection = Literal["top_entropy", "random", "uniform", "all"]
SELECTIONS = get_args(Selection)


def select_steps(
    rule: Selection,
    num_selected: int,
    entropy: Float[Tensor, "batch steps"],
    eligible: Bool[Tensor, "batch steps"],
    seeds: Int[Tensor, "batch"],
) -> Steps:
    """At most ``num_selected`` of each sample's eligible steps, without replacement.

    Returned in order of preference: ``top_entropy`` from the highest entropy down, the others in their own
    order. ``all`` ignores ``num_selected``.
    """
    num_steps = entropy.shape[1]
    if rule == "all":
        preference = -torch.arange(num_steps, device=entropy.device, dtype=entropy.dtype).expand_as(entropy)
        num_selected = num_steps
    elif rule == "uniform":
        preference = _evenly_spaced(eligible, num_selected).to(entropy.dtype)
        eligible = eligible & (preference > 0)
    elif rule == "random":
        preference = uniform(seeds, SELECTION, 0, num_steps)
    else:
        preference = entropy
    order = preference.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    index = order[:, :num_selected]
    mask = eligible.gather(1, index)
    return Steps(index=index.masked_fill(~mask, 0), mask=mask)


def _evenly_spaced(eligible: Bool[Tensor, "batch steps"], num_selected: int) -> Int[Tensor, "batch steps"]:
    """Descending marks on ``num_selected`` steps spread evenly over the eligible ones, 0 elsewhere."""
    count = eligible.sum(1, keepdim=True)
    k = torch.arange(num_selected, device=eligible.device)
    rank = (2 * k + 1) * count // (2 * num_selected)
    wanted = torch.zeros_like(eligible).scatter(1, rank.clamp(max=eligible.shape[1] - 1), True)
    place = eligible.long().cumsum(1) - 1
    chosen = wanted.gather(1, place.clamp(min=0)) & eligible
    return chosen * (eligible.shape[1] - place)
