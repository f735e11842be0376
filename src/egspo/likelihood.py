"""Evaluate a policy on canvases: guided logits for the sampler, log-probabilities for the objectives."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.ops.importance import truncated_weights
from egspo.ops.logprobs import (
    acting_logp,
    exact_kl,
    gather_logp,
    low_confidence_logp,
    plackett_luce_logp,
)
from egspo.ops.reveal import choice_logits
from egspo.policy import Policy
from egspo.types import Scores, Steps, Trajectory, Views
from egspo.views import step_views


def guided_logits(
    policy: Policy,
    inputs: Int[Tensor, "batch sequence"],
    attention_mask: Bool[Tensor, "batch sequence"],
    positions: Int[Tensor, "batch places"],
    length: int,
    cfg_scale: float,
) -> Float[Tensor, "batch places vocab"]:
    """Logits at positions of the sequence; with guidance, ``u + (1 + w)(c - u)``.

    ``u`` are the logits with the prompt (all but the last ``length`` tokens) masked (arXiv 2502.09992).
    """
    conditional = policy.logits(inputs, attention_mask, positions)
    if cfg_scale == 0:
        return conditional
    blind = inputs.clone()
    blind[:, : inputs.shape[1] - length] = policy.mask_token_id
    unconditional = policy.logits(blind, attention_mask, positions)
    return unconditional + (1 + cfg_scale) * (conditional - unconditional)


def score(policy: Policy, views: Views, sampler: SamplerConfig, with_exact_kl: bool = False) -> Scores:
    """Log-probabilities, under the distribution that the sampler acts with, of what each view scores.

    One forward pass over all views of weight other than 0, none if there are none; ``with_exact_kl`` adds one
    of the reference.
    """
    used = views.weight != 0
    batch, num_views, length = views.scored.shape
    if not used.any():
        nothing = torch.zeros_like(views.scored, dtype=views.weight.dtype)
        return Scores(nothing, nothing[..., 0], nothing if with_exact_kl else None)
    row = torch.arange(batch, device=used.device)[:, None].expand(batch, num_views)[used]
    inputs, attention = views.inputs[used], views.attention_mask[row]
    scored, targets = views.scored[used], views.targets[used]
    order = None if views.order is None else views.order[used]
    asked = scored if order is None else scored | (order > -2)
    positions, valid = pack(asked)
    offset = inputs.shape[1] - length

    def acting(who: Policy) -> tuple[Tensor, Tensor]:
        logits = guided_logits(who, inputs, attention, positions + offset, length, sampler.cfg_scale)
        return logits, acting_logp(logits, sampler.temperature, policy.suppressed)

    logits, logp = acting(policy)
    keep = valid & scored.gather(1, positions)
    token_logp = _unpack(gather_logp(logp, targets.gather(1, positions)), positions, keep, length)
    kl = None
    if with_exact_kl:
        with policy.reference() as frozen:
            _, ref_logp = acting(frozen)
        kl = _unpack(exact_kl(logp, ref_logp), positions, keep, length)
    place_logp = logp.new_zeros(len(inputs))
    if order is not None:
        untempered = acting_logp(logits, 1.0, policy.suppressed)
        ranks = order.gather(1, positions).masked_fill(~valid, -2)
        place_logp = position_logp(logp, untempered, targets.gather(1, positions), ranks, sampler)
    return Scores(
        token_logp=_scatter(token_logp, used),
        position_logp=_scatter(place_logp, used),
        exact_kl=None if kl is None else _scatter(kl, used),
    )


def position_logp(
    logp: Float[Tensor, "rows places vocab"],
    untempered: Float[Tensor, "rows places vocab"],
    tokens: Int[Tensor, "rows places"],
    order: Int[Tensor, "rows places"],
    sampler: SamplerConfig,
) -> Float[Tensor, "rows"]:
    """Log-probability of the positions that a step chose, where the sampler's rule is a draw that it scores.

    ``order`` as in `plackett_luce_logp`; ``tokens`` are those drawn at the chosen places.
    """
    if sampler.remasking == "low_confidence":
        return low_confidence_logp(logp, untempered, tokens, order)
    return plackett_luce_logp(choice_logits(untempered, sampler.position_temperature), order)


def score_in_microbatches(
    policy: Policy, views: Views, sampler: SamplerConfig, microbatch_size: int
) -> Scores:
    """Scores of many views without gradients, ``microbatch_size`` canvases a forward pass."""
    # Without a gradient no view depends on another, whatever the objective's loss makes of them together.
    apart = separate(views, torch.ones_like(views.weight, dtype=torch.bool))
    with torch.no_grad():
        parts = [score(policy, chunk, sampler) for chunk in microbatches(apart, microbatch_size)]
    return Scores(
        token_logp=torch.cat([part.token_logp for part in parts]).view_as(views.scored),
        position_logp=torch.cat([part.position_logp for part in parts]).view_as(views.weight),
    )


@dataclass(frozen=True)
class Correction:
    """A trajectory with the policy's own log-probabilities at some steps, and how far these were off."""

    trajectory: Trajectory
    log_weight: Float[Tensor, "batch chosen"]
    """``log pi(a_t | s_t) - log mu(a_t | s_t)`` of each step, before truncation; 0 where there is none."""


def correct(
    policy: Policy,
    trajectory: Trajectory,
    steps: Steps,
    sampler: SamplerConfig,
    cap: float,
    microbatch_size: int,
) -> Correction:
    """Score steps that a cached rollout sampled from mu under the policy pi itself, and weigh them.

    In the returned trajectory the steps' log-probabilities are those of pi, so that a ratio taken against
    them is one of policies, and ``importance`` is ``min(pi / mu, cap)`` of the step's action. Each weight
    speaks of its own step: that the state was reached by other actions than pi's is not corrected
    (docs/method.md).
    """
    views = step_views(trajectory, steps, torch.zeros_like(trajectory.entropy))
    scores = score_in_microbatches(policy, views, sampler, microbatch_size)
    old = views.old_token_logp.sum(-1) + views.old_position_logp
    log_weight = (scores.view_logp - old) * steps.mask
    scored = views.scored.any(1)
    token_logp = torch.where(scored, scores.token_logp.sum(1).to(old.dtype), trajectory.token_logp)
    importance = _at_steps(torch.ones_like(trajectory.entropy), steps, truncated_weights(log_weight, cap))
    position_logp = trajectory.position_logp
    if views.order is not None:
        position_logp = _at_steps(position_logp, steps, scores.position_logp)
    exact = {"token_logp": token_logp, "position_logp": position_logp, "importance": importance}
    return Correction(replace(trajectory, **exact), log_weight)


def _at_steps(values: Tensor, steps: Steps, new: Tensor) -> Float[Tensor, "batch steps"]:
    """Values of all steps with those of some replaced."""
    spare = torch.cat([values, values[:, :1]], dim=1)
    # What is masked out points at step 0, which may have been chosen too: it goes to a column of its own.
    index = steps.index.masked_fill(~steps.mask, values.shape[1])
    return spare.scatter(1, index, new.to(values.dtype))[:, :-1]


def microbatches(views: Views, microbatch_size: int) -> Iterator[Views]:
    """Slices of at most ``microbatch_size`` canvases; a sample's views stay together."""
    rows = max(1, microbatch_size // views.scored.shape[1])
    for start in range(0, len(views), rows):
        yield views[start : start + rows]


def separate(views: Views, active: Bool[Tensor, "batch views"]) -> Views:
    """Active views as samples of one view each: for objectives whose views do not depend on each other."""
    row = torch.arange(len(views), device=active.device)[:, None].expand_as(active)[active]

    def pick(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[active].unsqueeze(1)

    return Views(
        inputs=pick(views.inputs),
        attention_mask=views.attention_mask[row],
        targets=pick(views.targets),
        scored=pick(views.scored),
        weight=pick(views.weight),
        advantages=pick(views.advantages),
        step=pick(views.step),
        order=pick(views.order),
        old_token_logp=pick(views.old_token_logp),
        old_position_logp=pick(views.old_position_logp),
        completion_length=None if views.completion_length is None else views.completion_length[row],
    )


def one_view(views: Views) -> Views:
    """A first view with some weight, for a rank that has nothing of its own to evaluate."""
    weight = torch.zeros_like(views.weight[:1])
    weight[0, 0] = 1.0
    return replace(views[:1], weight=weight)


def pack(
    asked: Bool[Tensor, "rows length"],
) -> tuple[Int[Tensor, "rows places"], Bool[Tensor, "rows places"]]:
    """Positions asked for, packed to the left, and which of the places are real."""
    places = max(1, int(asked.sum(1).max())) if len(asked) else 1
    positions = asked.long().argsort(dim=1, descending=True, stable=True)[:, :places]
    return positions, asked.gather(1, positions)


def _unpack(values: Tensor, positions: Tensor, keep: Tensor, length: int) -> Float[Tensor, "rows length"]:
    out = torch.zeros(len(values), length, dtype=values.dtype, device=values.device)
    return out.scatter(1, positions, torch.where(keep, values, 0.0))


def _scatter(rows: Tensor, used: Bool[Tensor, "batch views"]) -> Tensor:
    out = torch.zeros(*used.shape, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    return out.masked_scatter(used.view(*used.shape, *[1] * (rows.ndim - 1)).expand_as(out), rows)
