"""Numbers in LaTeX as exact fractions."""

import re
from fractions import Fraction

MOST_DIGITS = 200
"""Longest number whose value is read."""

_NUMBERS = [
    re.compile(rf"(?P<sign>[+-]?){pattern}")
    for pattern in (
        r"(?P<decimal>[0-9]+\.?[0-9]*|\.[0-9]+)",
        r"(?P<before>[0-9]*)\.(?P<once>[0-9]*)\\(?:overline|bar)\{?(?P<again>[0-9]+)\}?",
        r"(?P<whole>[0-9]*)\\frac\{(?P<above>-?[0-9]+)\}\{(?P<below>-?[0-9]+)\}",
        r"(?:(?P<whole>[0-9]+) )?(?P<above>[0-9]+)/(?P<below>-?[0-9]+)",
    )
]


def rational(text: str) -> Fraction | None:
    r"""Value of a whole number, a decimal, a fraction or a mixed number; None for anything else."""
    if len(text) > MOST_DIGITS:
        return None
    text = re.sub(r"\s+", " ", re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text))
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _NUMBERS)), None)
    if match is None:
        return None
    groups, sign = match.groupdict(), -1 if match["sign"] == "-" else 1
    if groups.get("decimal"):
        return sign * Fraction(groups["decimal"].rstrip("."))
    if groups.get("again"):
        once, again = groups["once"], groups["again"]
        period = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(once))
        return sign * (Fraction(f"{groups['before'] or 0}.{once or 0}") + period)
    above, below, whole = int(groups["above"]), int(groups["below"]), int(groups["whole"] or 0)
    if below == 0 or (groups["whole"] and (above < 0 or below < 0)):
        return None
    return sign * (whole + Fraction(above, below))
