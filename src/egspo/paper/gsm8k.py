r"""d1's rules for GSM8K.

The first ``\boxed{`` whose content, up to the first closing brace of the same line, holds a number counts,
and of it the first number (``1,234`` is 1); without one the last number of the first ``<answer>``. Numbers
are floats.
"""

import re

_NUMBER = re.compile(r"-?\d+\.?\d*")
_GOLD = re.compile(r"####\s*\$?([\d,]+(?:\.\d+)?)")
_BOX = r"\boxed{"


def read_gold(answer: str) -> float | None:
    """The gold number as d1 reads it: behind ``####``, without thousands commas; None for a negative one."""
    match = _GOLD.search(answer if "####" in answer else f"#### {answer}")
    try:
        return float(match[1].replace(",", "")) if match else None
    except ValueError:
        return None


def read_answer(text: str) -> float | None:
    for content in _boxes(text):
        content = content.strip()
        if content.strip("."):
            number = _number(content, 0)
            if number is not None:
                return number
    content = first_answer_tag(text)
    return None if not content else _number(content, -1)


def first_answer_tag(text: str) -> str | None:
    """Content of the first ``<answer>`` if it is closed, without blanks around it."""
    _, opened, rest = text.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return content.strip() if opened and closed else None


def _boxes(text: str):
    at = text.find(_BOX)
    while at >= 0:
        start = at + len(_BOX)
        end = text.find("}", start)
        if end < 0:
            return
        if "\n" not in text[start:end]:
            yield text[start:end]
            start = end + 1
        at = text.find(_BOX, start)


def _number(content: str, which: int) -> float | None:
    try:
        return float(content)
    except ValueError:
        numbers = _NUMBER.findall(content)
        return float(numbers[which]) if numbers else None
