"""The distribution that acts: log-probabilities, draws and entropies of tempered, suppressed logits."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def acting_logp(
    logits: Float[Tensor, "*batch vocab"], temperature: float, suppressed: Sequence[int] = ()
) -> Float[Tensor, "*batch vocab"]:
    """``log softmax(logits / temperature)`` with some tokens ruled out.

    At temperature 0, where the policy is a point, this is the distribution at temperature 1.
    """
    logits = logits / (temperature or 1.0)
    if suppressed:
        ruled_out = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        ruled_out[list(suppressed)] = True
        logits = logits.masked_fill(ruled_out, -torch.inf)
    return logits.log_softmax(-1)


def draw(logp: Float[Tensor, "*batch vocab"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the uniform number.

    A token of probability 0 is never drawn. Probabilities that are not numbers give the last token.
    """
    return draw_several(logp, uniform.unsqueeze(-1)).squeeze(-1)


def draw_several(
    logp: Float[Tensor, "*batch vocab"], uniform: Float[Tensor, "*batch num"]
) -> Int[Tensor, "*batch num"]:
    """`draw`, as often from each distribution as it has uniform numbers."""
    cdf = logp.double().exp().cumsum(-1)
    total = cdf[..., -1:]
    # Rounding must not lift the point to the total, behind which only the last token is left.
    point = torch.minimum(uniform.double() * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, point, right=True).clamp(max=logp.shape[-1] - 1)


def entropy(logp: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """``-sum p log p`` in nats, with 0 log 0 = 0."""
    return torch.special.entr(logp.exp()).sum(-1)


def score_norm(logp: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Squared norm of the gradient of ``log p(token)`` with respect to the logits at temperature 1.

    The gradient is ``onehot(token) - p``, so its squared norm is ``1 - 2 p(token) + sum_v p(v)^2``: 0 for a
    token that is certain, near 1 for an improbable one. At another temperature all norms have one factor.
    """
    square = (2 * logp).exp().sum(-1)
    return (1 - 2 * gather_logp(logp, tokens).exp() + square).clamp(min=0)


def gather_logp(
    logp: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability of each token."""
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def exact_kl(
    logp: Float[Tensor, "*batch vocab"], ref_logp: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """``sum p (log p - log q)``; tokens that are ruled out in both add nothing."""
    gap = torch.where(torch.isinf(logp), 0.0, logp - ref_logp)
    return (logp.exp() * gap).sum(-1)


def plackett_luce_logp(
    score: Float[Tensor, "*batch length"], order: Int[Tensor, "*batch length"]
) -> Float[Tensor, "*batch"]:
    """Log-probability of an ordered draw without replacement with logits ``score``.

    ``sum_k score[o_k] - log sum_{j not drawn before k} exp score[j]``. ``order`` holds the rank of each
    position that was drawn, -1 for a candidate that was not drawn, -2 for a position that was no candidate.
    """
    num_drawn = int(order.max()) + 1
    logp = torch.zeros(score.shape[:-1], dtype=score.dtype, device=score.device)
    for rank in range(num_drawn):
        remaining = (order == -1) | (order >= rank)
        total = score.masked_fill(~remaining, -torch.inf).logsumexp(-1)
        drawn = order == rank
        happened = drawn.any(-1)
        term = score.masked_fill(~drawn, 0.0).sum(-1) - torch.where(happened, total, 0.0)
        logp = logp + term
    return logp


def low_confidence_logp(
    logp: Float[Tensor, "*batch length vocab"],
    confidence: Float[Tensor, "*batch length vocab"],
    tokens: Int[Tensor, "*batch length"],
    order: Int[Tensor, "*batch length"],
) -> Float[Tensor, "*batch"]:
    """Log-probability that low-confidence remasking reveals the positions that it did, given their tokens.

    A token v is drawn at every candidate j with probability ``p_j(v) = exp logp``, and the positions whose
    tokens have the highest ``confidence`` are revealed. With c the lowest confidence among those, every other
    candidate must have drawn a token of lower confidence:

        log P = sum_{j not revealed} log sum_{v: confidence_j(v) < c} p_j(v)

    so that the tokens drawn there and thrown away are summed out. Of equal confidences the earlier place is
    revealed first. ``order`` as in `plackett_luce_logp`; ``tokens`` count where it is 0 or more. No gradient
    flows through what is compared: sums jump where two confidences change places, which no gradient sees.
    """
    confidence = confidence.detach()
    revealed = gather_logp(confidence, tokens).masked_fill(order < 0, torch.inf)
    lowest = revealed.amin(-1, keepdim=True)
    place = torch.arange(tokens.shape[-1], device=tokens.device)
    last = torch.where(revealed == lowest, place, -1).amax(-1, keepdim=True)
    behind = (place > last)[..., None]
    below = (confidence < lowest[..., None]) | ((confidence == lowest[..., None]) & behind)
    # A policy that has moved on may have no such token: its least confident one stands for it.
    least = confidence.masked_fill(confidence.isinf(), torch.inf).argmin(-1, keepdim=True)
    chance = logp.masked_fill(~below.scatter(-1, least, True), -torch.inf).logsumexp(-1)
    return chance.masked_fill(order != -1, 0.0).sum(-1)
