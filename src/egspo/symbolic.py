"""Equality of mathematical expressions by math-verify, in worker processes that end what takes too long.

math-verify limits its time by a signal, which works in a main thread only and not within one long operation;
here that is switched off, and the limits are those of `egspo.workers`.
"""

import logging
import re
from functools import cache

from egspo import equality
from egspo.workers import Pool

SECONDS = 1.5
MEGABYTES = 1024
_LETTER = re.compile(r"\\math[a-z]+\s*\{[^{}]*\}|\\[A-Za-z]+|(?P<letter>[A-Za-z])")
"""A letter that is no part of a command or of the name of a set."""
FIGURES = 12
"""Decimals that a decimal number must share with an irrational one."""


@cache
def pool() -> Pool:
    """The workers of this process."""
    return Pool("egspo.symbolic:comparer", SECONDS, MEGABYTES)


def equal(gold: str, given: str) -> bool:
    """As `egspo.equality.equal`; what the writing leaves open is decided in a worker.

    Raises:
        LatexError: if one is longer, deeper or has more parts than is read.
        Overrun: if the comparison took too long.
    """
    verdict = equality.equal(gold, given)
    return bool(pool().call(gold, given)) if verdict is None else verdict


def cases_apart(gold: str, given: str) -> tuple[str, str]:
    r"""Two expressions in which no variable is told from another by its case alone.

    math-verify takes ``R`` and ``r`` for one. Where both stand, ``R`` gets the name of an idle letter.
    """
    letters = set(_LETTER.sub(lambda m: m["letter"] or " ", f"{gold} {given}"))
    idle = [letter for letter in "nmkpqtuvwabcfghjlrsxyz" if not letters & {letter, letter.upper()}]
    both = [letter for letter in sorted(letters) if letter.isupper() and letter.lower() in letters]
    names = dict(zip(both, idle, strict=False))
    renamed = (
        _LETTER.sub(lambda m: names.get(m["letter"], m[0]) if m["letter"] else m[0], text)
        for text in (gold, given)
    )
    return tuple(renamed)


def comparer():
    """The function that a worker serves; imports what it needs, and has it build its tables."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # Units are gone by now; what math-verify takes for one may be a variable (the t of \\sin t).
    plain = NormalizationConfig(basic_latex=True, malformed_operators=True, boxed="none")
    kinds = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=plain)]

    def read(text: str) -> list:
        return parse(f"${text}$", kinds, fallback_mode="no_fallback", parsing_timeout=None)

    def ask(gold: str, given: str) -> bool:
        found = list(map(read, cases_apart(gold, given)))
        return all(found) and verify(
            *found, float_rounding=FIGURES, allow_set_relation_comp=True, timeout_seconds=None
        )

    def compare(gold: str, given: str) -> bool:
        return bool(equality.equal(gold, given, ask))

    ask(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
    return compare
