r"""The shape of a mathematical answer in LaTeX: one writing for what is written in many ways, then its
parts.

Strings in, small trees out; nothing is computed. Layout (``\left``, ``\,``, ``\displaystyle``, dollar
signs), kinds of fractions, thousands separators, degree, percent and currency signs, and units behind a
value all vanish.
"""

import re
from dataclasses import dataclass

from egspo.rationals import rational

LONGEST = 2_000
"""Longest answer read, in characters."""
MOST_PARTS = 64
"""Most parts of an answer, on all levels together."""
DEEPEST = 12
"""Deepest nesting of parts."""
_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{DOT OPERATOR}": r"\cdot ",
        "\N{DIVISION SIGN}": r"\div ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{UNION}": r"\cup ",
        "\N{ELEMENT OF}": r"\in ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{DEGREE SIGN}": r"^\circ ",
        "\N{NO-BREAK SPACE}": " ",
        "\N{EURO SIGN}": "$",
        "\N{POUND SIGN}": "$",
        '"': " ",
    }
)
_WORDS = re.compile(
    r"\\(?:text|textnormal|textbf|textit|textrm|mbox|mathrm|mathit|mathbf|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "arcsin", "arccos", "arctan", "exp")
_CONJUNCTION = re.compile(r'\s*,?\s*(?:"[\s,]*(?:and|or)[\s,]*"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*')
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?)(?![A-Za-z])\s*", ""),
        (r"^\s*\*\*(.*)\*\*\s*$", r"\1"),
        (r"\\\\\s*$", ""),
        (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
        (r"\\phantom\s*(?:\{[^{}]*\}|\S)?", ""),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\\$|\$|\\%|%", ""),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", ""),
        (r"(?:,\s*\\!|\{,\}(?:\\!)?)\s*(?=[0-9]{3})", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:cdotp?|times|ast)(?![A-Za-z])", r"\\cdot "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr](brack)(?![A-Za-z])", lambda match: "[" if match[0][1] == "l" else "]"),
        (r"\\frac\s*([0-9])\s*(?=[0-9{])", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    ]
]
_UNIT = re.compile(r'(?<=[^\s,(\["])\s*"([^"]*)"(?:\s*\^\s*(?:\{\s*[0-9]\s*\}|[0-9]))?[\s.]*$')
_PLAIN_UNIT = re.compile(
    r"(-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+|[0-9]*\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+))\s+"
    r"((?:[cmk]?m|[mk]?g|s|ft|in|lbs?|oz|mi|hrs?|min|sec|mph|sq)\b[A-Za-z. ]*|[A-Za-z]{4}[A-Za-z. ]*)"
    r"(?:\^(?:\{[0-9]\}|[0-9]))?"
)
SCALES = {"dozen": 12, "hundred": 100} | {
    word: 1000**power for power, word in enumerate(("thousand", "million", "billion", "trillion"), start=1)
}
"""Words behind a number that multiply it."""
_CHANGING = frozenset(
    ["squared", "cubed", "half", "halves", "third", "thirds", "quarter", "quarters", "factorial"]
)
"""Words behind a number that make another of it, and are no unit."""
_HALF_OF_A_DAY = re.compile(r'(?<=[0-9])\s*"?\s*([ap])\.?\s*m\.?\s*"?$', re.IGNORECASE)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SPACED = re.compile(r"-?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_BRACKET = re.compile(r"\\[{}]|[(){}\[\]]|\\begin\b|\\end\b")
_VARIABLE = re.compile(
    r"\s*(?:[A-Za-z]|\\[a-z]+|[A-Za-z]_\{?[A-Za-z0-9]\}?|[A-Za-z]\^\{-1\}\([a-z]\)|[A-Za-z]\([a-z]\))\s*"
)
_NAMED = re.compile(rf"{_VARIABLE.pattern}|\((?:{_VARIABLE.pattern},)+{_VARIABLE.pattern}\)")
_MEMBER = re.compile(rf"^{_VARIABLE.pattern}\\in(?![A-Za-z])")
VALUE, LIST, TUPLE, UNION, MATRIX, RATIO, EQUATION = (
    "value",
    "list",
    "tuple",
    "union",
    "matrix",
    "ratio",
    "equation",
)


class LatexError(ValueError):
    """The text is longer, deeper or has more parts than is read."""


@dataclass(frozen=True)
class Shape:
    """An answer: of ``kind`` value (``text``) or made of ``parts``.

    A number with thousands separators has the numbers between them as parts: beside a list, it is one.

    ``mark`` is what must agree besides: the brackets of a tuple, rows and delimiters of a matrix, morning or
    afternoon of a time. An equation has its two sides as parts.
    """

    kind: str
    text: str
    parts: tuple["Shape", ...] = ()
    mark: str = ""


def clean(text: str) -> str:
    r"""A text without its layout; words of ``\text{…}`` stand in double quotes.

    Raises:
        LatexError: for a text of more than `LONGEST` characters.
    """
    if len(text) > LONGEST:
        raise LatexError(f"longer than {LONGEST} characters")
    text = " ".join(text.translate(_CHARACTERS).split())  # runs of blanks would make the patterns slow
    text = _WORDS.sub(_unwrap, text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = " ".join(text.split())
    text = _CONJUNCTION.sub(" , ", text) if not _is_words(text) else text
    return text.strip().rstrip(".,;").strip()


def read(text: str) -> Shape:
    """The shape of an answer.

    Raises:
        LatexError: for one that is longer, deeper or has more parts than is read.
    """
    return _bounded(_read(clean(text), 0))


def readings(text: str) -> list[Shape]:
    """The shape of a gold answer; of each side, if it says its value twice (``0.56 = 56\\%``).

    Raises:
        LatexError: as `read`.
    """
    sides = _split(clean(text), "=")
    chain = len(sides) > 1 and all(rational(side) is not None for side in sides)
    return [_read(side, 0) for side in sides] if chain else [read(text)]


def _bounded(shape: Shape) -> Shape:
    """Unordered parts are compared each with each, so their number is bounded over all levels."""
    if _size(shape) > MOST_PARTS:
        raise LatexError(f"more than {MOST_PARTS} parts")
    return shape


def _size(shape: Shape) -> int:
    return sum(map(_size, shape.parts)) or 1


def words(shape: Shape) -> str | None:
    r"""What a value says if it is nothing but words in ``\text{…}``; None if it is anything else."""
    match = re.fullmatch(r'[\s("]*"([^"]*)"[\s)"]*', shape.text)
    return match[1] if match and shape.kind == VALUE else None


def _unwrap(match: re.Match) -> str:
    content = match[1].strip()
    if content in _FUNCTIONS:
        return f"\\{content} "
    # \mathbf{2340} and \mathrm{i} are set in another face, \text{6:00} is in upright type: no words.
    worded = re.search("[A-Za-z]", content) and not re.search("[0-9]", content)
    return f' "{content}" ' if worded and (len(content) > 1 or content in "mgs") else match[1]


def _is_words(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z\s]*", text) is not None


def _read(text: str, depth: int) -> Shape:
    if depth > DEEPEST:
        raise LatexError(f"nested deeper than {DEEPEST}")
    text, mark = _strip_unit(text.strip().rstrip(".,;"))
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        text = r"(-\infty,\infty)"
    text = text.replace(" ", "") if _SPACED.fullmatch(text) else text
    if _THOUSANDS.fullmatch(text):
        parts = tuple(Shape(VALUE, part) for part in text.split(","))
        return Shape(VALUE, text.replace(",", ""), parts, mark)
    for kind, separator in ((LIST, ","), (UNION, r"\cup"), (EQUATION, "="), (RATIO, ":")):
        parts = _split(text, separator)
        if len(parts) > 1:
            return _of_parts(kind, text, parts, mark, depth)
    inside = _bracketed(text)
    if inside is not None:
        return _read_bracketed(text, *inside, depth)
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _read_matrix(text, matrix[1], matrix[2], depth)
    if len(parts := text.split(r"\pm")) == 2:
        signs = [_read(f"{parts[0]}{sign}{parts[1]}", depth + 1) for sign in "+-"]
        return Shape(LIST, text, tuple(signs))
    return Shape(VALUE, re.sub(r"\s+", " ", text).removeprefix("+").strip(), mark=mark)


def _of_parts(kind: str, text: str, parts: list[str], mark: str, depth: int) -> Shape:
    parts = [part for part in parts if part.strip()] if kind == LIST else parts
    if len(parts) == 1:
        return _read(parts[0], depth + 1)
    if len(parts) > MOST_PARTS:
        raise LatexError(f"more than {MOST_PARTS} parts")
    if kind == EQUATION and not re.search(r"[<>]|\\[lg]e\b|\\neq?\b", text):
        return _read_equation(text, parts, depth)
    if kind == EQUATION or (kind == RATIO and not all(part.strip() for part in parts)):
        return Shape(VALUE, text, mark=mark)
    shapes = tuple(_read(part, depth + 1) for part in parts)
    if kind == LIST:  # a list within a list, as 1, \pm 2 has, is one list
        shapes = tuple(one for shape in shapes for one in (shape.parts if shape.kind == LIST else (shape,)))
    return Shape(kind, text, shapes, mark)


def _read_equation(text: str, parts: list[str], depth: int) -> Shape:
    """A value that is named (``x = 5``, ``f(x) = …``) or computed (``3 + 4 = 7``), else an equation."""
    *_, before, last = parts
    if all(not re.search(r"[A-Za-z]", re.sub(r'\\[A-Za-z]+|"[^"]*"', "", part)) for part in parts):
        return _read(last, depth + 1)
    if len(parts) > 2:
        return Shape(VALUE, text)
    return Shape(EQUATION, text, (Shape(VALUE, re.sub(r"\s", "", before)), _read(last, depth + 1)))


def is_name(shape: Shape) -> bool:
    """Whether the side of an equation is a variable, a function of one, or a tuple of variables."""
    return shape.kind == VALUE and _NAMED.fullmatch(shape.text) is not None


def _read_bracketed(text: str, opening: str, content: str, closing: str, depth: int) -> Shape:
    parts = [part for part in _split(content, ",") if part.strip()]
    if len(parts) > MOST_PARTS:
        raise LatexError(f"more than {MOST_PARTS} parts")
    if len(parts) < 2:
        return _read(content, depth + 1) if parts else Shape(VALUE, text.replace(" ", ""))
    shapes = tuple(_read(part, depth + 1) for part in parts)
    if opening == r"\{":
        return Shape(LIST, text, tuple(one for s in shapes for one in (s.parts if s.kind == LIST else (s,))))
    return _read(content, depth + 1) if opening == "{" else Shape(TUPLE, text, shapes, opening + closing)


def _read_matrix(text: str, kind: str, content: str, depth: int) -> Shape:
    rows = [row.split("&") for row in re.split(r"\\\\", content) if row.strip()]
    cells = [_read(cell, depth + 1) for row in rows for cell in row]
    if len(cells) > MOST_PARTS:
        raise LatexError(f"more than {MOST_PARTS} parts")
    delimiters = "|" if kind in ("vmatrix", "Vmatrix") else "("
    return Shape(MATRIX, text, tuple(cells), delimiters + " ".join(str(len(row)) for row in rows))


def _strip_unit(text: str) -> tuple[str, str]:
    """A value without the unit behind it, and whether that said morning or afternoon."""
    text = _MEMBER.sub("", text)
    text = next((side for side in _split(text, r"\approx") if side.strip()), "").strip()
    half = _HALF_OF_A_DAY.search(text)
    if half:
        return text[: half.start()], half[1].lower()
    plain = _PLAIN_UNIT.fullmatch(text)
    value, unit = (plain[1], plain[2]) if plain else (_UNIT.sub("", text).strip(), _unit(text))
    first = unit.split()[0].lower() if unit.split() else ""
    if first in SCALES and (number := rational(value.replace(",", ""))) is not None:
        return str(number * SCALES[first]), ""
    return (text if first in _CHANGING else value), ""


def _unit(text: str) -> str:
    r"""The words of ``\text{…}`` behind a value."""
    match = _UNIT.search(text)
    return match[1] if match else ""


def _bracketed(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket, if the first bracket closes at the end of the text."""
    opening = next((o for o in (r"\{", "(", "[", "{") if text.startswith(o)), None)
    if opening is None:
        return None
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[0] in (r"\begin", r"\end"):
            continue
        depth += 1 if match[0] in _PAIRS else -1
        if depth == 0:
            fits = match[0] in (")]" if opening in "([" else _PAIRS[opening])
            whole = match.end() == len(text) and fits
            return (opening, text[len(opening) : match.start()], match[0]) if whole else None
    return None


def _split(text: str, separator: str) -> list[str]:
    """Parts between the separators that stand in no bracket and no environment."""
    if separator not in text:
        return [text]
    parts, start, depth = [], 0, 0
    for match in re.finditer(
        rf"{_BRACKET.pattern}|{re.escape(separator)}(?![A-Za-z])|{re.escape(separator)}", text
    ):
        if match[0] == separator:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match[0] in _PAIRS or match[0] == r"\begin" else -1
    return [*parts, text[start:]]
