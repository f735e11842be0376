"""Paired comparison of two methods that were run with the same seeds and asked the same problems."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from egspo.ops.intervals import Z95, Interval, student_mass, student_t

DRAWS = 10_000


def bootstrap_interval(
    differences: Float[Tensor, "seeds problems"], draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """95 % percentile interval of the mean difference over all seeds and all problems; None for one seed.

    Seeds and problems are crossed, so each is drawn anew with replacement on its own (Owen, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1, 2007). Drawing from n seeds finds ``(n - 1) / n`` of the
    variance of their means, and few seeds tell it badly. These means are therefore first spread around their
    own by ``sqrt(n / (n - 1)) t / 1.96``, with Student's t of n - 1 degrees of freedom: where problems vary
    little, the interval is about Student's over seeds.
    """
    n, problems = differences.shape
    if n < 2:
        return None
    values = differences.double()
    of_seeds = values.mean(1, keepdim=True)
    spread = math.sqrt(n / (n - 1)) * student_t(n - 1) / Z95
    values = values + (spread - 1) * (of_seeds - of_seeds.mean())
    means = torch.empty(draws, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, draws, 1000):
            size = min(1000, draws - start)
            by_seed = _counts(size, n) @ values
            means[start : start + size] = (by_seed * _counts(size, problems)).sum(1) / (n * problems)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t-test of one difference a seed; None for fewer than two seeds."""
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    variance = math.fsum((value - mean) ** 2 for value in differences) / (n - 1)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    t = mean / math.sqrt(variance / n)
    return max(0.0, 1 - student_mass(math.atan(abs(t) / math.sqrt(n - 1)), n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 6, 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _counts(size: int, of: int) -> Float[Tensor, "size of"]:
    """How often each of ``of`` is drawn, in ``size`` draws of ``of`` with replacement."""
    drawn = torch.randint(of, (size, of))
    ones = torch.ones(size, of, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add(1, drawn, ones)
