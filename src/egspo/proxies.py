"""Completions at once of the states of a rollout: what is rewarded in place of a state's value.

The greedy one-step completion is EGSPO-SA's (arXiv 2603.12554): every masked position takes its most probable
token, from the logits that the step computes anyway. Two other proxies cost more and are nearer to the value,
the mean reward of what the policy would make of the state: several completions drawn from the same logits
(DiSPO, arXiv 2602.06462), and one made in a few passes, so that late tokens see early ones. What the step
draws itself, also where it does not reveal it, is MDPO's action (arXiv 2508.13148).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.likelihood import pack
from egspo.ops import noise
from egspo.ops.logprobs import acting_logp, draw, draw_several
from egspo.policy import Policy
from egspo.types import Proxy

Logits = Float[Tensor, "rows places vocab"]


def draw_own(
    logp: Logits,
    seeds: Int[Tensor, "rows"],
    step: Int[Tensor, "rows"],
    positions: Int[Tensor, "rows places"],
    sampler: SamplerConfig,
) -> Int[Tensor, "rows places"]:
    """What a rollout's step draws from the log-probabilities that it acts with; at temperature 0 the best."""
    if sampler.temperature == 0:
        return logp.argmax(-1)
    uniform = noise.uniform(seeds, noise.TOKENS, step, sampler.max_completion_length)
    return draw(logp, uniform.gather(1, positions))


class Proxies:
    """Writes down the completions of every state, step by step.

    ``fillings`` is ``batch x steps x length``; ``batch x steps x num_samples x length`` if they are drawn.
    A step whose pass covers a part of the canvas, as with a cache, fills the rest with its earlier guesses.
    """

    def __init__(self, proxy: Proxy, policy: Policy, seeds: Int[Tensor, "batch"], sampler: SamplerConfig):
        self.proxy, self.sampler, self.seeds = proxy, sampler, seeds
        self.mask_token_id, self.suppressed = policy.mask_token_id, policy.suppressed
        each = (proxy.num_samples,) if proxy.num_samples else ()
        shape = (len(seeds), sampler.diffusion_steps, *each, sampler.max_completion_length)
        self.fillings = torch.full(shape, self.mask_token_id, device=seeds.device)
        self._guess = self.fillings[:, 0].clone()

    def write(
        self,
        canvas: Int[Tensor, "batch length"],
        rows: Int[Tensor, "rows"],
        step: Int[Tensor, "rows"],
        where: tuple[Int[Tensor, "rows places"], Bool[Tensor, "rows places"]],
        logits: Logits,
        again: Callable[[Tensor, Tensor], Logits],
    ) -> None:
        """Complete some rows' states, each before its ``step``.

        ``where`` are masked positions and which of them are real, ``logits`` what the policy says of them,
        ``again(canvas, positions)`` what it says of a canvas on which more is revealed.
        """
        state = canvas[rows]
        if self.proxy.num_passes > 1:
            state, where, logits = self._revealed(canvas.clone(), rows, where, logits, again)
        positions, valid = where
        if self.proxy.num_samples:
            tokens = self._drawn(rows, step, positions, logits)
            positions, valid, state = (
                each[:, None].expand(-1, tokens.shape[1], -1) for each in (positions, valid, state)
            )
        elif self.proxy.own:
            logp = acting_logp(logits, self.sampler.temperature, self.suppressed)
            tokens = draw_own(logp, self.seeds[rows], step, positions, self.sampler)
        else:
            tokens = self._allowed(logits).argmax(-1)
        guess = self._guess[rows]
        guess = guess.scatter(-1, positions, torch.where(valid, tokens, guess.gather(-1, positions)))
        self._guess[rows] = guess
        self.fillings[rows, step] = torch.where(state == self.mask_token_id, guess, state)

    def _drawn(self, rows: Tensor, step: Tensor, positions: Tensor, logits: Logits) -> Tensor:
        """Tokens of every sample, drawn as the rollout draws its own but with other noise."""
        logp = acting_logp(logits, self.sampler.temperature, self.suppressed)
        if self.sampler.temperature == 0:
            return logp.argmax(-1)[:, None].expand(-1, self.proxy.num_samples, -1)
        length = self.sampler.max_completion_length
        numbers = noise.uniform(self.seeds[rows], noise.FILLINGS, step, self.proxy.num_samples * length)
        numbers = numbers.unflatten(1, (-1, length)).transpose(1, 2)
        at = positions[..., None].expand(-1, -1, self.proxy.num_samples)
        return draw_several(logp, numbers.gather(1, at)).transpose(1, 2)

    def _revealed(self, canvas: Tensor, rows: Tensor, where, logits: Logits, again):
        """State, positions and logits of the last pass: those before it reveal equal shares, greedily.

        Blocks come in their order, and in a block the most confident position first, as in a rollout.
        """
        for left in range(self.proxy.num_passes, 1, -1):
            positions, valid = where
            best = self._allowed(logits).log_softmax(-1).max(-1)
            order = (positions // self.sampler.block_length).double() - best.values.double().exp() / 2
            order = order.masked_fill(~valid, torch.inf).argsort(dim=1, stable=True)
            number = (valid.sum(1, keepdim=True) + left - 1) // left
            taken = torch.zeros_like(valid).scatter(1, order, _first(number, order)) & valid
            state = canvas[rows]
            tokens = torch.where(taken, best.indices, state.gather(1, positions))
            canvas[rows] = state.scatter(1, positions, torch.where(valid, tokens, state.gather(1, positions)))
            where = pack(canvas[rows] == self.mask_token_id)
            if not bool(where[1].any()):
                break
            logits = again(canvas, where[0])
        return canvas[rows], where, logits

    def _allowed(self, logits: Logits) -> Logits:
        logits = logits.clone()
        logits[..., list(self.suppressed)] = -torch.inf
        return logits


def _first(number: Int[Tensor, "rows 1"], order: Tensor) -> Bool[Tensor, "rows places"]:
    return torch.arange(order.shape[1], device=order.device) < number
