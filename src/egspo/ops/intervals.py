"""How much a score means: pass@k, and 95 % intervals over problems and over seeds."""

import math
from collections.abc import Sequence

Z95 = 1.959964
"""Two-sided 95 % point of the normal distribution."""

Interval = tuple[float, float]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of ``k`` completions is right, estimated from ``n`` of which ``correct`` are.

    ``1 - C(n - c, k) / C(n, k)``: the share of the subsets of k completions that hold a right one, hence
    unbiased. As ``1 - prod_{i = n-c+1 .. n} (1 - k / i)``, whose factors neither overflow nor cancel (Chen et
    al., arXiv 2107.03374).
    """
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def wilson(right: int | float, n: int | float, z: float = Z95) -> Interval:
    """Wilson score interval of a proportion (Wilson, JASA 1927); the whole of [0, 1] for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_wilson(values: Sequence[int | float], num_answers: int, z: float = Z95) -> Interval:
    """Wilson interval of the mean of one value in [0, 1] a problem, each made of several answers.

    Answers to one problem are alike, so they are not ``num_answers`` independent ones; problems are
    independent. The variance of the mean is therefore that of the values over their number m, and the
    interval that of as many yes-or-no answers as would vary as much: ``n = m p (1 - p) / var(values)``. That
    is m if each value is 0 or 1, more the less the problems differ, and never more than ``num_answers``
    (effective sample size by the design effect, Kish, "Survey sampling", 1965; in Wilson's interval: Korn
    and Graubard, Survey Methodology 24, 1998).
    """
    m = len(values)
    if m == 0:
        return 0.0, 1.0
    mean = math.fsum(values) / m
    variance = math.fsum((value - mean) ** 2 for value in values) / m
    independent = mean * (1 - mean)
    if independent <= 0:  # all right or all wrong: nothing shows that answers to one problem differ
        effective: float = m
    else:
        effective = min(num_answers, m * independent / variance) if variance > 0 else num_answers
    return wilson(mean * effective, effective, z)


def student_interval(values: Sequence[int | float]) -> Interval | None:
    """95 % interval of the mean of a population that ``values`` are drawn from; None for fewer than two.

    ``mean -+ t s / sqrt(n)``, ``s`` the sample's standard deviation and ``t`` the two-sided 95 % point of
    Student's t with n - 1 degrees of freedom.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_t(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def student_t(degrees: int, level: float = 0.95) -> float:
    """The t within which Student's distribution has ``level`` of its mass: its closed form, bisected."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_mass(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def student_mass(angle: float, degrees: int) -> float:
    """``P(|T| <= sqrt(degrees) tan(angle))`` (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = cosine if odd else 1.0, 0.0
    for i in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * i + 2 if odd else 2 * i + 1) / (2 * i + 3 if odd else 2 * i + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
