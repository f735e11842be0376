r"""Reading answers out of generated text, and writing them; exact arithmetic on what was read.

Rules of extraction: the last complete ``\boxed{…}`` counts, else the last closed ``<answer>…</answer>``;
nothing behind the first end token counts. Every function takes time linear in its text, whatever the text.
"""

import operator
import re
from fractions import Fraction

END_TOKENS = ("<|eot_id|>", "<|endoftext|>", "<|im_end|>")
MARK = "####"
"""What stands between the reasoning of a solution and its answer (GSM8K)."""
MAX_EXPRESSION = 400
"""Longest expression read, in characters."""
MAX_DIGITS = 12
"""Longest number read, in digits."""
MAX_DEPTH = 40
"""Deepest nesting of parentheses and fractions read."""

_END = re.compile("|".join(map(re.escape, END_TOKENS)))
_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
_TOKEN = re.compile(
    r"(?P<blank>\s+)|(?P<number>[0-9]+)|(?P<frac>\\[dt]?frac(?![A-Za-z]))|(?P<symbol>[-+*/(){}])"
)
_SPELLINGS = {
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DOT OPERATOR}": "*",
    "\N{ASTERISK OPERATOR}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{DIVISION SLASH}": "/",
    "\N{MINUS SIGN}": "-",
    r"\times": "*",
    r"\cdot": "*",
    r"\ast": "*",
    r"\div": "/",
    r"\left(": "(",
    r"\right)": ")",
    **dict.fromkeys((r"\,", r"\:", r"\;", r"\!", r"\ "), " "),
}
_SPELLING = re.compile("|".join(map(re.escape, _SPELLINGS)))
_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {"*": operator.mul, "/": operator.truediv}


class ExpressionError(ValueError):
    """The text is not an expression that `evaluate_expression` reads, or it divides by zero."""


def before_end(text: str) -> str:
    """The text up to the first end token."""
    return _END.split(text, maxsplit=1)[0]


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{…}``, the one that opens last; None without one.

    Braces must balance, ``\{`` and ``\}`` do not count as braces, and a box that never closes is passed over.
    """
    last_start, content, stack = -1, None, []
    for match in _BRACES.finditer(text):
        if match["box"] or match["open"]:
            stack.append((match.end(), match["box"] is not None))
        elif match["close"] and stack:
            start, is_box = stack.pop()
            if is_box and start > last_start:
                last_start, content = start, text[start : match.start()]
    return content


def last_answer_tag(text: str) -> str | None:
    """Content of the last ``<answer>`` that is closed by ``</answer>``; None without one."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.find("</answer>", start)]


def final_answer(text: str) -> str | None:
    r"""The answer of a text: its last complete ``\boxed``, else its last closed ``<answer>``, else None."""
    text = before_end(text)
    boxed = last_boxed(text)
    return last_answer_tag(text) if boxed is None else boxed


def answer_or_text(text: str, bare: bool = False) -> str | None:
    r"""The final answer or, where there is none, the whole text up to its end token.

    The whole text stands in only if it has no trace of ``\boxed`` or ``<answer>``, or if ``bare`` says that
    completions are answers and nothing else (prompt style ``compact``). Otherwise None.
    """
    answer, text = final_answer(text), before_end(text)
    if answer is None and (bare or not any(mark in text for mark in ("\\boxed", "<answer>", "</answer>"))):
        return text
    return answer


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    r"""Exact value of an arithmetic expression, and the numbers that it uses in the order of writing.

    Whole numbers, ``+ - * /`` and parentheses; also ``× · ⋅ ∗ ÷ ∕ −``, ``\times \cdot \ast \div``,
    ``\frac{a}{b}`` (``\dfrac``, ``\tfrac``), ``\left( \right)``, thin spaces (``\,``), and dollar signs or
    ``\( \)`` around the whole. A minus sign may stand at
    the beginning of the expression, of a parenthesis or of a fraction's half (``-(3-5)``: it reaches no
    positive value that binary operators do not), nowhere else. Refused: ``**``, ``//``, powers, names,
    decimals, thousands separators, products without a sign, digits other than 0-9, ``=``.

    Raises:
        ExpressionError: for anything else, for division by zero, and beyond `MAX_EXPRESSION`, `MAX_DIGITS`
            or `MAX_DEPTH`, which bound time and memory for any text.
    """
    text = text.strip().strip("$").removeprefix("\\(").removesuffix("\\)")
    if len(text) > MAX_EXPRESSION:
        raise ExpressionError(f"longer than {MAX_EXPRESSION} characters")
    parser = _Parser(_tokens(text))
    value = parser.total(0)
    if parser.ahead:
        raise ExpressionError(f"expected an operator, found {parser.ahead!r}")
    return value, parser.numbers


def _tokens(text: str) -> list[str]:
    text = _SPELLING.sub(lambda match: _SPELLINGS[match[0]], text)
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"{text[at]!r} is no part of an expression")
        if match["number"] and len(match[0]) > MAX_DIGITS:
            raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
        if not match["blank"]:
            tokens.append("frac" if match["frac"] else match[0])
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent: total = [-] product {+- product}, product = atom {*/ atom}."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens[::-1]
        self.numbers: list[int] = []

    @property
    def ahead(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def total(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        negative = self.ahead == "-"
        if negative:
            self.tokens.pop()
        value = self.product(depth)
        value = -value if negative else value
        while self.ahead in _SUMS:
            value = _SUMS[self.tokens.pop()](value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.ahead in _PRODUCTS:
            value = _apply(self.tokens.pop(), value, self.atom(depth))
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.ahead
        if token.isdigit():
            self.numbers.append(int(self.tokens.pop()))
            return Fraction(self.numbers[-1])
        if token == "(":
            return self.group(depth, "(", ")")
        if token == "frac":
            self.tokens.pop()
            return _apply("/", self.group(depth, "{", "}"), self.group(depth, "{", "}"))
        raise ExpressionError(f"expected a number, found {token!r}" if token else "ends too early")

    def group(self, depth: int, opening: str, closing: str) -> Fraction:
        self.expect(opening)
        value = self.total(depth + 1)
        self.expect(closing)
        return value

    def expect(self, token: str) -> None:
        if self.ahead != token:
            raise ExpressionError(f"expected {token!r}, found {self.ahead!r}")
        self.tokens.pop()


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign == "/" and right == 0:
        raise ExpressionError("divides by zero")
    return _PRODUCTS[sign](left, right)


def shortened(value: Fraction) -> str:
    """A number as a verdict tells it."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def worked(style: str, solution: str) -> str:
    """A solution with its reasoning and `MARK`, as the completion that a prompt of this style asks for."""
    reasoning, _, answer = (part.strip() for part in solution.rpartition(MARK))
    if style == "compact":
        return f"{reasoning}\n<answer>{answer}</answer>"
    reasoning = f"<reasoning>\n{reasoning}\n</reasoning>" if style == "paper" else reasoning
    return f"{reasoning}\n<answer>\n\\boxed{{{answer}}}\n</answer>"
