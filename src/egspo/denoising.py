"""One batch of canvases from all masked to text: forward passes, draws, and what is written down of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from egspo.config import SamplerConfig
from egspo.likelihood import guided_logits, pack, position_logp
from egspo.models.layers import KVCache
from egspo.ops import noise
from egspo.ops.logprobs import (
    acting_logp,
    entropy,
    gather_logp,
    score_norm,
)
from egspo.ops.reveal import (
    completion_mask,
    last_informative_step,
    position_scores,
    random_order_logp,
    reveal_schedule,
)
from egspo.policy import Policy
from egspo.proxies import Proxies, draw_own
from egspo.types import Proxy, Trajectory

Rows = Int[Tensor, "rows"]
"""Samples that are still at work, as indices into the batch."""


def denoise(
    policy: Policy,
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_mask: Bool[Tensor, "batch prompt"],
    seeds: Int[Tensor, "batch"],
    sampler: SamplerConfig,
    proxy: Proxy | None,
) -> Trajectory:
    """Denoise one completion for each row; `egspo.rollout.rollout` says what comes of it.

    All rows enter a block together; a row that is done with the block, or with its text, waits at no cost.
    """
    record = _Record.empty(policy, seeds, sampler)
    proxies = Proxies(proxy, policy, seeds, sampler) if proxy else None
    passes = _Passes(policy, prompt_ids, prompt_mask, sampler)
    previous = None
    for start, end, count in reveal_schedule(
        sampler.max_completion_length, sampler.block_length, sampler.diffusion_steps
    ):
        passes.begin_step(new_block=start != previous)
        previous = start
        rows = record.at_work(start, end)
        if len(rows):
            _step(record, proxies, passes, rows, (start, end), count, sampler)
            if sampler.early_stop:
                record.stop_finished(rows)
    fillings = proxies.fillings if proxies else None
    return record.trajectory(prompt_ids, prompt_mask, fillings, sampler)


def _step(
    record: "_Record",
    proxies: Proxies | None,
    passes: "_Passes",
    rows: Rows,
    block: tuple[int, int],
    count: int,
    sampler: SamplerConfig,
) -> None:
    """One denoising step of some rows: a forward pass, draws, a choice of positions."""
    start, end = block
    hidden = record.canvas[rows] == record.mask_token_id
    hidden[:, :start] = False
    hidden[:, passes.reach(end, proxies is not None) :] = False
    positions, valid = pack(hidden)
    logits = passes.logits(record.canvas, rows, positions, block)
    if proxies is not None:

        def again(canvas: Tensor, masked: Tensor) -> Tensor:
            return passes.logits(canvas, rows, masked, block)

        proxies.write(record.canvas, rows, record.step[rows], (positions, valid), logits, again)
    # Positions ascend within what is valid, so those of the block come first.
    valid = valid & (positions < end)
    width = int(valid.sum(1).max())
    positions, valid, logits = positions[:, :width], valid[:, :width], logits[:, :width]
    _reveal(record, rows, positions, valid, logits, count, sampler)


def _reveal(record: "_Record", rows: Rows, positions, valid, logits, count, sampler: SamplerConfig) -> None:
    """Draw a token for each candidate, choose positions, write both down."""
    seeds, step, length = record.seeds[rows], record.step[rows], record.canvas.shape[1]
    logp = acting_logp(logits, sampler.temperature, record.suppressed)
    untempered = logp if sampler.temperature in (0, 1) else acting_logp(logits, 1.0, record.suppressed)
    drawn = draw_own(logp, seeds, step, positions, sampler)
    uniform = noise.uniform(seeds, noise.POSITIONS, step, length).gather(1, positions)
    scores = position_scores(sampler.remasking, untempered, drawn, uniform, sampler.position_temperature)
    scores = scores.masked_fill(~valid, -torch.inf)
    number = _number(scores, valid, count, sampler)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : int(number.max())]
    taken = torch.arange(chosen.shape[1], device=chosen.device) < number[:, None]
    tokens = drawn.gather(1, chosen)
    acted = logp.gather(1, chosen[..., None].expand(-1, -1, logp.shape[-1]))
    record.write(
        rows,
        positions.gather(1, chosen),
        taken,
        tokens=tokens,
        token_logp=gather_logp(acted, tokens),
        entropy=(entropy(acted) * taken).sum(1),
        score_norm=(score_norm(acted, tokens) * taken).sum(1),
        position_logp=_position_logp(logp, untempered, drawn, chosen, valid, sampler),
    )


def _number(scores: Tensor, valid: Tensor, count: int, sampler: SamplerConfig) -> Int[Tensor, "rows"]:
    """How many positions each row reveals: those of the schedule, and whatever passes the threshold.

    Confident positions are the best-scored ones, since both rules that take a threshold score by log
    probability (Fast-dLLM, arXiv 2505.22618).
    """
    number = torch.full((len(valid),), count, device=valid.device)
    if sampler.confidence_threshold is not None:
        confident = (scores.exp() > sampler.confidence_threshold) & valid
        number = torch.maximum(number, confident.sum(1))
    return torch.minimum(number, valid.sum(1))


def _position_logp(
    logp: Tensor, untempered: Tensor, drawn: Tensor, chosen: Tensor, valid: Tensor, sampler: SamplerConfig
) -> Float[Tensor, "rows"]:
    """Log-probability of the choice of positions, where it is a draw; rows are then in step."""
    if sampler.remasking == "random":
        constant = random_order_logp(untempered.shape[1], chosen.shape[1])
        return untempered.new_full((len(chosen),), constant)
    if not sampler.draws_positions:
        return untempered.new_zeros(len(chosen))
    order = torch.where(valid, -1, -2)
    order.scatter_(1, chosen, torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen))
    return position_logp(logp, untempered, drawn, order, sampler)


class _Passes:
    """Forward passes of a rollout: over the whole sequence, or over a window against what is cached.

    With a cache, the first step of a block and every ``cache_refresh_steps``-th after it is a whole pass,
    which is exact; the others compute the block and what follows it (prefix), or the block alone (dual).
    """

    def __init__(self, policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, sampler: SamplerConfig):
        self._policy, self._sampler = policy, sampler
        self._prompt_ids = prompt_ids
        canvas = prompt_mask.new_ones(len(prompt_mask), sampler.max_completion_length)
        self._attention = torch.cat([prompt_mask, canvas], dim=1)
        self._cache = None if sampler.cache == "none" else KVCache()
        self._cached_rows: Tensor | None = None
        self._since_whole = 0

    def begin_step(self, new_block: bool) -> None:
        self._since_whole += 1
        refresh = self._sampler.cache_refresh_steps
        if new_block or self._since_whole == refresh:
            self._since_whole = 0

    @property
    def whole(self) -> bool:
        """Whether this step's pass covers the whole sequence."""
        return self._cache is None or self._since_whole == 0

    def reach(self, end: int, to_fill: bool) -> int:
        """How far into the canvas this step's pass shall give logits."""
        beyond = to_fill and (self.whole or self._sampler.cache == "prefix")
        return self._sampler.max_completion_length if beyond else end

    def logits(
        self, canvas: Int[Tensor, "batch length"], rows: Rows, positions: Tensor, block: tuple[int, int]
    ) -> Float[Tensor, "rows places vocab"]:
        offset, length = self._prompt_ids.shape[1], canvas.shape[1]
        inputs = torch.cat([self._prompt_ids[rows], canvas[rows]], dim=1)
        attention = self._attention[rows]
        if self._cache is None:
            scale = self._sampler.cfg_scale
            return guided_logits(self._policy, inputs, attention, positions + offset, length, scale)
        if self.whole:
            self._cached_rows, window = rows, None
        else:
            end = block[1] if self._sampler.cache == "dual" else length
            window = (offset + block[0], offset + end)
            # Places that fill up a row may be anywhere, and are not looked at.
            positions = positions.clamp(block[0], end - 1)
            if len(rows) < len(self._cached_rows):
                self._cache.select(torch.isin(self._cached_rows, rows))
                self._cached_rows = rows
        return self._policy.logits(inputs, attention, positions + offset, self._cache, window)


@dataclass
class _Record:
    """What is written while a batch is denoised, each row at its own step."""

    canvas: Int[Tensor, "batch length"]
    reveal_step: Int[Tensor, "batch length"]
    reveal_order: Int[Tensor, "batch length"]
    token_logp: Float[Tensor, "batch length"]
    position_logp: Float[Tensor, "batch steps"]
    entropy: Float[Tensor, "batch steps"]
    score_norm: Float[Tensor, "batch steps"]
    step: Int[Tensor, "batch"]
    seeds: Int[Tensor, "batch"]
    mask_token_id: int
    end_token_ids: tuple[int, ...]
    suppressed: tuple[int, ...]

    @classmethod
    def empty(cls, policy: Policy, seeds: Tensor, sampler: SamplerConfig) -> "_Record":
        batch, length, steps = len(seeds), sampler.max_completion_length, sampler.diffusion_steps
        dtype = torch.promote_types(next(policy.model.parameters()).dtype, torch.float32)
        canvas = torch.full((batch, length), policy.mask_token_id, device=seeds.device)
        numbers = torch.zeros((batch, steps), dtype=dtype, device=seeds.device)
        return cls(
            canvas=canvas,
            reveal_step=torch.zeros_like(canvas),
            reveal_order=torch.zeros_like(canvas),
            token_logp=torch.zeros(canvas.shape, dtype=dtype, device=seeds.device),
            position_logp=numbers,
            entropy=numbers.clone(),
            score_norm=numbers.clone(),
            step=torch.zeros_like(seeds),
            seeds=seeds,
            mask_token_id=policy.mask_token_id,
            end_token_ids=policy.end_token_ids,
            suppressed=policy.suppressed,
        )

    def at_work(self, start: int, end: int) -> Rows:
        """Rows with something left to reveal in a block."""
        return (self.canvas[:, start:end] == self.mask_token_id).any(1).nonzero().squeeze(1)

    def write(self, rows: Rows, places, taken, *, tokens, token_logp, **by_step: Tensor) -> None:
        """Write down a step of some rows: ``taken`` says which of ``places`` were revealed, in order.

        ``by_step`` holds ``entropy``, ``score_norm`` and ``position_logp``, a number a row each.
        """
        row = rows[:, None].expand_as(places)[taken]
        place, step = places[taken], self.step[rows]
        order = torch.arange(places.shape[1], device=places.device).expand_as(places)
        self.canvas[row, place] = tokens[taken]
        self.token_logp[row, place] = token_logp[taken]
        self.reveal_step[row, place] = step[:, None].expand_as(places)[taken]
        self.reveal_order[row, place] = order[taken]
        for name, values in by_step.items():
            getattr(self, name)[rows, step] = values
        self.step[rows] += 1

    def stop_finished(self, rows: Rows) -> None:
        """Fill rows up with end tokens where all before the first end token is revealed."""
        canvas = self.canvas[rows]
        open_ = canvas == self.mask_token_id
        stop = torch.isin(canvas, torch.tensor(self.end_token_ids, device=canvas.device)) | open_
        first = stop.long().argmax(1, keepdim=True)
        finished = stop.any(1) & ~open_.gather(1, first).squeeze(1) & open_.any(1)
        if not bool(finished.any()):
            return
        fill = open_ & finished[:, None]
        self.canvas[rows] = torch.where(fill, self.end_token_ids[0], canvas)
        self.reveal_step[rows] = torch.where(fill, self.step[rows][:, None], self.reveal_step[rows])

    def trajectory(
        self, prompt_ids: Tensor, prompt_mask: Tensor, fillings: Tensor | None, sampler: SamplerConfig
    ) -> Trajectory:
        mask = completion_mask(self.canvas, self.end_token_ids)
        return Trajectory(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            final=self.canvas,
            reveal_step=self.reveal_step,
            reveal_order=self.reveal_order,
            token_logp=self.token_logp,
            position_logp=self.position_logp,
            entropy=self.entropy,
            score_norm=self.score_norm,
            one_step=fillings,
            completion_mask=mask,
            last_step=last_informative_step(self.reveal_step, mask),
            steps_taken=self.step,
            seeds=self.seeds,
            mask_token_id=self.mask_token_id,
            block_length=sampler.block_length,
            draws_positions=sampler.draws_positions,
            cache=sampler.cache,
        )
