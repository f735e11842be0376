"""Likelihoods of given texts: the bound of masked diffusion, and whether greedy decoding would write them."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from egspo.likelihood import guided_logits, pack
from egspo.ops import noise
from egspo.ops.logprobs import acting_logp, gather_logp
from egspo.policy import Policy
from egspo.rollout import pad_prompts

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context and of the text after it. The context has at least one."""
MOST_SCORES = 2**27
"""Scores of a forward pass, canvases x places x vocabulary: half a gibibyte of float32."""


@torch.no_grad()
def log_likelihoods(
    policy: Policy,
    pairs: Sequence[Pair],
    num_samples: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    cfg_scale: float = 0.0,
) -> list[float]:
    """Lower bounds on ``log p(text | context)`` in nats, estimated on ``num_samples`` canvases each.

    With l uniform in 1 .. L and S uniform among the sets of l of the L positions,
    ``log p(x) >= E[(L / l) sum_{i in S} log p(x_i | x without S)]`` (LLaDA, arXiv 2502.09992, eq. 6). A
    text so short that its ``2^L - 1`` sets are no more than ``num_samples`` is not
    estimated: all sets are visited, each with its probability. The mask token is ruled out, as in decoding.
    What a pair gets depends on its tokens and ``seed``, not on its neighbours.
    """
    bounds = torch.zeros(len(pairs), dtype=torch.float64)
    for length, members in _by_length(pairs):
        most = max(1, batch_size // min(num_samples, 2**length - 1))
        for rows in _chunks(members, most):
            bounds[rows] = _bounds(
                policy, [pairs[row] for row in rows], num_samples, seed, batch_size, cfg_scale
            )
    return bounds.tolist()


def masked_sets(
    length: int, num_samples: int, seed: int
) -> tuple[Bool[Tensor, "views length"], Float64[Tensor, "views"]]:
    """Sets of positions to mask, and the weight with which each one's sum of log-probabilities counts.

    Sizes are stratified: one of each of ``num_samples`` equal parts of (0, 1], scaled to 1 .. L.
    """
    if length < 63 and 2**length - 1 <= num_samples:
        sets = torch.tensor(list(itertools.product([False, True], repeat=length))[1:])
        size = sets.sum(1).tolist()
        weight = [1 / (count * math.comb(length, count)) for count in size]
        return sets, torch.tensor(weight, dtype=torch.float64)
    key, views = torch.tensor([seed]), torch.arange(num_samples)
    level = (views + noise.uniform(key, noise.SELECTION, 0, num_samples)[0]) / num_samples
    size = (length * level).floor().long().clamp(max=length - 1) + 1
    order = noise.uniform(key.expand(num_samples), noise.VIEWS, views, length)
    return order.argsort(1).argsort(1) < size[:, None], length / (size.double() * num_samples)


def _bounds(
    policy: Policy, pairs: Sequence[Pair], num_samples: int, seed: int, batch_size: int, cfg_scale: float
) -> Float64[Tensor, "pairs"]:
    """Bounds of a few texts of one length."""
    ids, mask, targets = _inputs(policy, pairs)
    length = targets.shape[1]
    drawn = [masked_sets(length, num_samples, _seed(pair, seed)) for pair in pairs]
    hidden = torch.cat([sets for sets, _ in drawn]).to(policy.device)
    row = torch.arange(len(pairs), device=policy.device).repeat_interleave(len(drawn[0][0]))
    sums = []
    for part in _batches(len(row), batch_size, int(hidden.sum(1).max()), policy):
        who = row[part]
        logp, positions, valid = _logp(policy, ids[who], mask[who], hidden[part], cfg_scale)
        chosen = gather_logp(logp, targets[who].gather(1, positions)).double()
        sums.append(torch.where(valid, chosen, 0.0).sum(1).cpu())
    weight = torch.cat([weight for _, weight in drawn])
    return torch.zeros(len(pairs), dtype=torch.float64).index_add(0, row.cpu(), weight * torch.cat(sums))


@torch.no_grad()
def greedy_matches(
    policy: Policy, pairs: Sequence[Pair], batch_size: int = 64, cfg_scale: float = 0.0
) -> list[bool]:
    """Whether each text is what greedy decoding writes on a canvas of its own length, a token a step.

    The most confident position is revealed first (low-confidence remasking in one block); a canvas is given
    up at its first wrong token, so that most cost a pass or two.
    """
    matches = [True] * len(pairs)
    for _, members in _by_length(pairs):
        for rows in _chunks(members, batch_size):
            for row, right in zip(rows, _matches(policy, [pairs[r] for r in rows], cfg_scale), strict=True):
                matches[row] = right
    return matches


def _matches(policy: Policy, pairs: Sequence[Pair], cfg_scale: float) -> list[bool]:
    ids, mask, targets = _inputs(policy, pairs)
    alive = torch.arange(len(pairs), device=policy.device)
    hidden = torch.ones_like(targets, dtype=torch.bool)
    for left in range(targets.shape[1], 0, -1):
        revealed = []
        for part in _batches(len(alive), len(alive), left, policy):
            who = alive[part]
            logp, positions, _ = _logp(policy, ids[who], mask[who], hidden[who], cfg_scale)
            confidence, token = logp.max(-1)
            first = confidence.argmax(1, keepdim=True)
            revealed.append(torch.cat([positions.gather(1, first), token.gather(1, first)], dim=1))
        place, token = torch.cat(revealed).T if revealed else (alive, alive)
        hidden[alive, place] = False
        alive = alive[targets[alive, place] == token]
    found = set(alive.tolist())
    return [i in found for i in range(len(pairs))]


def _logp(
    policy: Policy,
    ids: Int[Tensor, "rows sequence"],
    mask: Bool[Tensor, "rows sequence"],
    hidden: Bool[Tensor, "rows length"],
    cfg_scale: float,
) -> tuple[Float[Tensor, "rows places vocab"], Int[Tensor, "rows places"], Bool[Tensor, "rows places"]]:
    """Log-probabilities at the hidden positions, which of the text these are, and which places are real."""
    length = hidden.shape[1]
    offset = ids.shape[1] - length
    canvas = torch.where(hidden, policy.mask_token_id, ids[:, offset:])
    positions, valid = pack(hidden)
    inputs = torch.cat([ids[:, :offset], canvas], dim=1)
    logits = guided_logits(policy, inputs, mask, positions + offset, length, cfg_scale)
    return acting_logp(logits, 1.0, policy.suppressed), positions, valid


def _inputs(policy: Policy, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded sequences of context and text, which tokens are real, and the texts, all of one length."""
    ids, mask = pad_prompts(policy, [[*context, *text] for context, text in pairs])
    longest = ids.shape[1]
    if policy.max_length is not None and longest > policy.max_length:
        raise ValueError(
            f"max_length: a text of {longest} tokens, context included, exceeds the model's "
            f"{policy.max_length}; shorten the context (fewer examples)"
        )
    return ids, mask, ids[:, longest - len(pairs[0][1]) :]


def _by_length(pairs: Sequence[Pair]) -> Iterator[tuple[int, list[int]]]:
    """Pairs by the length of their texts, those of like contexts together; empty texts are certain."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][1]), len(pairs[i][0])))
    for length, members in itertools.groupby(order, key=lambda i: len(pairs[i][1])):
        if length:
            yield length, list(members)


def _chunks(members: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(members), size):
        yield list(members[start : start + size])


def _batches(num: int, batch_size: int, places: int, policy: Policy) -> Iterator[slice]:
    """Slices of canvases whose scores at so many places fit into the memory that a pass may take."""
    fitting = MOST_SCORES // (places * len(policy.tokenizer))
    size = max(1, min(batch_size, fitting))
    for start in range(0, num, size):
        yield slice(start, start + size)


def _seed(pair: Pair, seed: int) -> int:
    """A seed of the pair's own, so that its canvases depend on nothing else."""
    text = json.dumps([seed, list(pair[0]), list(pair[1])])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
