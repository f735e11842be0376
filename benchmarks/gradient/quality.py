"""How good an estimate of the gradient is: unbiased statistics of blocks of batches, and their intervals.

``g`` is an arm's estimate on one batch, ``G`` the gradient, known as means ``G_r`` of R blocks of independent
batches, or exactly (R = 1). All quantities are ratios of products of means, and a product of means is taken
over pairs of *different* blocks: the noise of one block is independent of that of another, so that such a
product is unbiased, where the square of a noisy mean is too large by its variance.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from egspo.ops.intervals import student_t

BACKWARD = 2
"""Forward passes that a backward pass counts as."""


@dataclass(frozen=True)
class Blocks:
    """Means over each of B blocks of an arm's batches, in float64."""

    dots: Tensor
    """``[B, R]``: of ``g . G_r``."""
    cosines: Tensor
    """``[B, R]``: of ``g . G_r / |g|``."""
    squares: Tensor
    """``[B]``: of ``|g|^2``."""
    products: Tensor
    """``[B, B]``: inner products of the blocks' mean estimates."""
    rollout: Tensor
    """``[B]``: of the canvases of a rollout."""
    update: Tensor
    """``[B]``: of the canvases of an update."""
    reference: Tensor
    """``[R, R]``: ``G_r . G_s``."""

    def keep(self, rows: Tensor) -> "Blocks":
        """Some of the blocks of batches."""
        return replace(
            self,
            dots=self.dots[rows],
            cosines=self.cosines[rows],
            squares=self.squares[rows],
            products=self.products[rows][:, rows],
            rollout=self.rollout[rows],
            update=self.update[rows],
        )

    def keep_reference(self, rows: Tensor) -> "Blocks":
        """Some of the blocks of the reference."""
        return replace(
            self,
            dots=self.dots[:, rows],
            cosines=self.cosines[:, rows],
            reference=self.reference[rows][:, rows],
        )


def quality(blocks: Blocks) -> dict[str, float]:
    """The quantities of docs/gradient_quality.md; NaN where the gradient cannot be told from noise."""
    norm2 = _square_of_mean(blocks.reference)
    mean2 = _square_of_mean(blocks.products)
    along, square = blocks.dots.mean(), blocks.squares.mean()
    variance = square - mean2
    snr = _square_of_dot(blocks.dots) / norm2 / variance
    passes, trained = blocks.rollout.mean(), (1 + BACKWARD) * blocks.update.mean()
    values = {
        "cosine_of_mean": along / (norm2 * mean2).sqrt(),
        "bias_square": (mean2 - 2 * along + norm2) / norm2,
        "cosine": blocks.cosines.mean() / norm2.sqrt(),
        "efficiency": along / (norm2 * square).sqrt(),
        "snr": snr,
        "snr_per_1000_passes": 1000 * snr / (passes + trained),
        "snr_per_1000_update_passes": 1000 * snr / trained,
        "scale": along / norm2,
        "rollout_canvases": passes,
        "update_canvases": blocks.update.mean(),
    }
    return {key: float(value) for key, value in values.items()}


def _square_of_mean(products: Tensor) -> Tensor:
    """``|E v|^2`` from the inner products of independent means of v; of the one product if v is known."""
    n = len(products)
    if n == 1:
        return products[0, 0]
    return (products.sum() - products.diagonal().sum()) / (n * (n - 1))


def _square_of_dot(dots: Tensor) -> Tensor:
    """``(E g . G)^2`` from ``[B, R]`` means of it: the mean over pairs with both blocks different."""
    batches, known = dots.shape
    if known == 1:
        return (dots.sum() ** 2 - dots.square().sum()) / (batches * (batches - 1))
    same = dots.sum(1).square().sum() + dots.sum(0).square().sum() - dots.square().sum()
    return (dots.sum() ** 2 - same) / (batches * (batches - 1) * known * (known - 1))


def with_errors(blocks: Blocks, against: Blocks | None = None) -> dict[str, tuple[float, float]]:
    """Each quantity, and half the width of its 95 % interval; ratios to ``against`` too, of the same batches.

    Delete-one-block jackknife over the blocks of batches and over those of the reference, whose variances
    add; Student's t with one degree of freedom less than there are blocks. The ratio is taken anew without
    each block from both arms, so that what they share, completions and reference, cancels.
    """
    whole = _values(blocks, against)
    variance = dict.fromkeys(whole, 0.0)
    halves = [(len(blocks.squares), Blocks.keep)]
    if len(blocks.reference) > 1:
        halves.append((len(blocks.reference), Blocks.keep_reference))
    for count, keep in halves:
        found = []
        for left_out in range(count):
            rows = torch.arange(count) != left_out
            found.append(_values(keep(blocks, rows), None if against is None else keep(against, rows)))
        for key in whole:
            values = torch.tensor([each[key] for each in found], dtype=torch.float64)
            variance[key] += float((count - 1) / count * (values - values.mean()).square().sum())
    t = student_t(min(count for count, _ in halves) - 1)
    return {key: (value, t * variance[key] ** 0.5) for key, value in whole.items()}


def _values(blocks: Blocks, against: Blocks | None) -> dict[str, float]:
    own = quality(blocks)
    if against is None:
        return own
    other = quality(against)
    return own | {f"{key}_ratio": own[key] / other[key] if other[key] else float("nan") for key in COMPARED}


COMPARED = ("cosine", "efficiency", "snr", "snr_per_1000_passes", "snr_per_1000_update_passes")
