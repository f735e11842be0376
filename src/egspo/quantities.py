r"""Reading the one number that a short answer states: ``18``, ``$1,234.50``, ``18 km/h``, ``2\frac12 cups``.

The value is an exact fraction. Words and units may stand around the number. An answer with several numbers
states none unless they are equal: ``3 apples and 4 pears``, ``7:30`` and ``18-20`` are refused, ``$18
($18.00)`` is read. Of a calculation, ``3 x 4 = 12``, what follows the last equals sign is read.
"""

import re
from fractions import Fraction

LONGEST = 400
"""Longest answer read, in characters."""
MOST_DIGITS = 40
"""Longest number read, in characters."""

_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"[\u2212\u2013\u2012\ufe63\uff0d]", "-"),
        (r"[\u00a0\u2007\u2009\u202f]", " "),
        (r"\{,\}|,\s*\\!", ","),
        (r"\\[!,;:]", ""),
        (r"\\(?:text|textbf|textnormal|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[()\[\]]", " "),
        (r"\\ |~|\\q?quad(?![A-Za-z])", " "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\N{DEGREE SIGN}", " "),
        (r"\\[$%]|[$€£¥¢%]", lambda match: " % " if match[0][-1] == "%" else "$"),
        (
            r"\\[dtc]?frac\s*\{\s*(-?[0-9][0-9,]*)\s*\}\s*\{\s*([0-9][0-9,]*)\s*\}",
            lambda match: f" {match[1]}/{match[2]} ".replace(",", ""),
        ),
        (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2 "),
        (r"\*\*|(?<![0-9A-Za-z])[_`]{1,2}(?=[-$0-9])|(?<=[0-9.])[_`]{1,2}(?![0-9{A-Za-z])", ""),
    ]
]
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*\$?\s*(?P<second>[+-]?)"
    r"(?:(?:(?P<mixed>[0-9]+)\s+)?(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)"
    r"|(?P<thousands>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)|(?P<plain>[0-9]+(?:\.[0-9]+)?|\.[0-9]+))"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)(?![a-z])|(?P<kilo>[kKM])(?![A-Za-z]))?"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6}
_UNIT_DIGITS = re.compile(
    r"(?<=[A-Za-z)}])\s*\^\s*\{?\s*-?[0-9]\s*\}?|(?<=[A-Za-z])[²³]|(?<![A-Za-z0-9])(?:c|k|m)?m[23](?![A-Za-z0-9])"
)
_MISREAD = re.compile(
    r"\b(?:not|nor|neither|minus|negative|(?:half|third|quarter|square|root)\s+of|twice|double|triple|"
    r"squared|cubed|(?:and|plus)\s+(?:a|one)\s+(?:half|third|quarter|fifth)s?)\b"
    r"|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b|#\s*(?:hundred|thousand|million|billion|trillion)\b"
)


class NumberError(ValueError):
    """The text does not state one number."""


def read_number(text: str) -> Fraction:
    """The number that an answer states.

    Raises:
        NumberError: if it states none or several, or one that is not read: with other digits than 0-9, a
            power (``2^3``, ``1e3``), a division by zero, more than `MOST_DIGITS` characters.
    """
    if len(text) > LONGEST:
        raise NumberError(f"longer than {LONGEST} characters")
    text = " ".join(text.split())  # runs of blanks would make the patterns slow
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = " ".join(text.split())
    text = _UNIT_DIGITS.sub(" ", text).rpartition("=")[2]
    values, rest, at = [], "", 0
    for match in _NUMBER.finditer(text):
        values.append(_value(match, text))
        rest += text[at : match.start()] + "#"
        at = match.end()
    rest += text[at:]
    _check_rest(rest, values)
    return values[0]


def _check_rest(rest: str, values: list[Fraction]) -> None:
    """``rest`` is the text with ``#`` for each number."""
    if any(character.isdigit() or character.isnumeric() for character in rest):
        raise NumberError("digits other than those of a number 0-9")
    if not values:
        raise NumberError("no number")
    if len(set(values)) > 1 or len(values) > 2:
        shown = ", ".join(str(value)[:20] for value in values[:4])
        raise NumberError(f"several numbers ({shown}{', …' if len(values) > 4 else ''})")
    if re.search(
        r"[-+]\s*\(\s*\$?\s*#|#\s*(?:\^|!|\*|\\times|\\cdot|\\div|x\s*#)|[.,]#|#,#|#\s*:\s*#|\\sqrt|(?<![\s($:])[-+]#|#[eE][-+]?#",
        rest,
    ):
        raise NumberError("a calculation, not a number")
    if _MISREAD.search(rest.lower()):
        raise NumberError("words that change the number")


def _value(match: re.Match, text: str) -> Fraction:
    if len(match[0]) > MOST_DIGITS:
        raise NumberError(f"a number of more than {MOST_DIGITS} characters")
    if match["below"] is not None:
        if int(match["below"]) == 0:
            raise NumberError("divides by zero")
        value = Fraction(int(match["above"]), int(match["below"])) + int(match["mixed"] or 0)
    else:
        value = Fraction((match["thousands"] or match["plain"]).replace(",", ""))
    # A hyphen within a word ("answer-5") or a range ("18-20") is no sign; _check_rest sees the words.
    before = text[match.start() - 1 : match.start()]
    sign = match["sign"] + match["second"]
    if sign and before and not re.match(r"[\s($:]", before):
        raise NumberError(
            f"{text[max(0, match.start() - 10) : match.end()].strip()!r} may be negative or not"
        )
    scale = (match["scale"] or match["kilo"] or "").lower()
    value *= 10 ** _SCALES.get(scale, 0)
    return -value if sign.count("-") == 1 else value
