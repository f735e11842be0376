r"""d1's rules for Countdown.

The expression is the last ``\boxed``, the whole text if it has none, and the first ``<answer>`` only if the
box does not close; of it the first run of digits, operators and parentheses that ``=`` and a digit, point
or blank follow. Its digits must be the numbers given, each once, and its value, computed as Python does,
the target.
"""

import re
from collections.abc import Sequence

from egspo.paper import arithmetic
from egspo.paper.arithmetic import NotArithmetic
from egspo.paper.gsm8k import first_answer_tag
from egspo.paper.math500 import NotRead, boxed

TOLERANCE = 1e-5

_RUN = re.compile(r"[0-9+\-*/() ]+")
_AFTER_EQUALS = re.compile(r"=[0-9. ]")
_ALLOWED = re.compile(r"[\d+\-*/().\s]+")


def read_expression(text: str) -> str:
    try:
        expression = boxed(text)
    except NotRead:
        expression = first_answer_tag(text)
        expression = text if expression is None else expression
    for latex, sign in ((r"\div", "/"), (r"\times", "*"), (r"\cdot", "*")):
        expression = expression.replace(latex, sign)
    runs = (run for run in _RUN.finditer(expression) if _AFTER_EQUALS.match(expression, run.end()))
    run = next(runs, None)
    return run[0].strip() if run else expression


def verdict(expression: str, numbers: Sequence[int], target: int) -> tuple[bool, str]:
    """Whether an expression reaches the target, and why not."""
    try:
        used = [int(digits) for digits in re.findall(r"\d+", expression)]
    except ValueError:  # more digits than Python converts
        used = None
    if used is None or sorted(used) != sorted(numbers):
        return False, "does not use each number once"
    if not _ALLOWED.fullmatch(expression):
        return False, "has other characters than digits, operators and parentheses"
    try:
        value = arithmetic.evaluate(expression)
    except NotArithmetic as error:
        return False, f"has no value: {error}"
    if abs(value - target) < TOLERANCE:
        return True, f"reaches {target}"
    return False, f"does not equal {target}"
