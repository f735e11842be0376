"""Bounds of a completion's log-likelihood from canvases on which some of its tokens are masked.

For the n tokens y of a completion and a set S of masked ones let ``f(S) = sum_{k in S} log p(y_k | y outside
S)``. A masked diffusion model's evidence lower bound is

    ELBO = E_{l ~ U{1..n}} E_{|S| = l} [ (n / l) f(S) ]  =  int_0^1 E_{S ~ t} [ f(S) / t ] dt

where ``S ~ t`` masks each token with probability t on its own; both equal the mean over all n! orders of the
log-likelihood of revealing y one by one (arXiv 2406.03736). The first form is estimated by drawing sets, the
second by drawing them at the points of a quadrature.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from egspo.ops.noise import VIEWS, uniform


def draw_count(point: Float64[Tensor, "batch"], low: int, high: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """A whole number of ``low .. high``, all equally likely, from a uniform number in (0, 1)."""
    # The product may round up to the number of choices.
    return torch.minimum(low + (point * (high - low + 1)).long(), high)


def draw_subset(
    eligible: Bool[Tensor, "batch length"],
    count: Int[Tensor, "batch"],
    points: Float64[Tensor, "batch length"],
) -> Bool[Tensor, "batch length"]:
    """``count`` of the eligible positions, every such set equally likely: those of the smallest numbers.

    ``count`` exceeds no row's number of eligible positions; ``points`` are uniform in (0, 1).
    """
    rank = points.masked_fill(~eligible, 2.0).argsort(1).argsort(1)
    return rank < count[:, None]


def draw_masks(
    seeds: Int[Tensor, "batch"],
    eligible: Bool[Tensor, "batch length"],
    iteration: int,
    num_draws: int,
    complement: bool,
) -> Bool[Tensor, "batch views length"]:
    """Random sets of the n eligible positions: ``l ~ U{0..n}`` of them each, possibly none or all.

    With ``complement`` each draw is followed by the eligible positions that it left, which are as many as
    a draw's and distributed as one: together they score every token once (LLaDA 1.5, arXiv 2505.19223,
    uses the same antithetic idea between policies; arXiv 2506.20639 and 2512.03759 within one).
    """
    size, length = eligible.sum(1), eligible.shape[1]
    masks = []
    for draw in range(num_draws):
        points = uniform(seeds, VIEWS, iteration * num_draws + draw, length + 1)
        masks.append(draw_subset(eligible, draw_count(points[:, 0], 0, size), points[:, 1:]))
        if complement:
            masks.append(eligible & ~masks[-1])
    return torch.stack(masks, dim=1)


def mask_weights(
    masked: Bool[Tensor, "batch views length"], size: Int[Tensor, "batch"]
) -> Float64[Tensor, "batch views"]:
    """``(n + 1) / l`` for sets drawn with ``l ~ U{0..n}``, and 0 for an empty one.

    Then ``E[weight f(S)]`` is the ELBO: n + 1 instead of n makes up for the empty draws.
    """
    count = masked.sum(-1).double()
    return torch.where(count > 0, (size[:, None] + 1) / count.clamp(min=1), 0.0)


def gauss_legendre(num_points: int) -> tuple[Float64[Tensor, "points"], Float64[Tensor, "points"]]:
    """Points in (0, 1), ascending, and weights that sum to 1.

    Exact for polynomials of degree ``2 num_points - 1``, from the eigenvectors of the Jacobi matrix (Golub
    and Welsch, Mathematics of Computation 23, 1969).
    """
    k = torch.arange(1, num_points, dtype=torch.float64)
    beside = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (values + 1) / 2, vectors[0].square()


def upper_bound(
    token_logp: Float[Tensor, "batch views length"],
    masked: Bool[Tensor, "batch views length"],
    size: Int[Tensor, "batch"],
    power: float,
) -> Float[Tensor, "batch"]:
    """``(1 / (b |K|)) sum_{k in K} log [ (1/m) sum_v (n / l_v) 1{k in S_v} p_v(y_k)^b ]``: nats a token.

    EUBO of SPG (arXiv 2510.09541), estimated from m sets S_v of l_v > 0 tokens; K are the tokens of any of
    them, b is ``power``. With all sets in the mean it is at least the ELBO a token, by Jensen's inequality.
    """
    count = masked.sum(-1)
    log_weight = (size[:, None].double() / count.clamp(min=1)).log().to(token_logp.dtype)
    term = (power * token_logp + log_weight[..., None]).masked_fill(~masked, -torch.inf)
    seen = masked.any(1)
    # A token of no set is left out before the logarithm: the gradient of log 0 is not a number.
    total = term.masked_fill(~seen[:, None], 0.0).logsumexp(1) - math.log(masked.shape[1])
    return (total * seen).sum(-1) / (power * seen.sum(-1).clamp(min=1))
