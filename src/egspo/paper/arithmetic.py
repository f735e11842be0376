"""What Python's own reading of an arithmetic expression comes to, without handing it the text.

d1 evaluates a model's expression as Python code after a look at its characters, which lets ``**``, ``//``
and decimals through, and ``9**9**9`` run for hours. Here the same grammar is parsed: whole and decimal
numbers, ``+ - * / // **``, signs and parentheses, with Python's precedence and arithmetic. What Python
would take unboundedly long for is refused.
"""

import operator
import re

MAX_BITS = 1 << 18
"""Size of the largest whole number computed."""
MAX_DEPTH = 200
"""Nesting of parentheses, as Python's tokenizer has it."""
MAX_SIGNS = 500
"""Signs in a row."""

Number = int | float | complex

_TOKEN = re.compile(
    r"[ \t\f]*(?:(?P<decimal>[0-9]+\.[0-9]*|\.[0-9]+)|(?P<whole>[0-9]+)"
    r"|(?P<sign>\*\*|//|[-+*/()])|(?P<line>[\r\n]))"
)
_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv}


class NotArithmetic(Exception):
    """Python would refuse the text, fail on it, or not come to an end."""


def evaluate(text: str) -> Number:
    """Value of an expression.

    Raises:
        NotArithmetic: if it has none, or one beyond the limits above.
    """
    parser = _Parser(_tokens(text.strip()))
    try:
        value = parser.total(0)
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        raise NotArithmetic(str(error)) from None
    if parser.tokens:
        raise NotArithmetic(f"{parser.tokens[-1]!r} in the wrong place")
    return value


def _tokens(text: str) -> list[str | Number]:
    """Tokens in reverse order."""
    tokens, at, depth = [], 0, 0
    end = len(text.rstrip(" \t\f"))
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotArithmetic(f"{text[at]!r} is no part of an expression")
        at = match.end()
        if match["decimal"]:
            tokens.append(float(match["decimal"]))
        elif match["whole"]:
            if match["whole"][0] == "0" and match["whole"].strip("0"):
                raise NotArithmetic("a whole number with leading zeros")
            tokens.append(int(match["whole"]))
        elif match["sign"]:
            depth += {"(": 1, ")": -1}.get(match["sign"], 0)
            tokens.append(match["sign"])
        elif depth == 0:
            raise NotArithmetic("a line end outside parentheses")
        if depth > MAX_DEPTH:
            raise NotArithmetic(f"nested deeper than {MAX_DEPTH}")
    return tokens[::-1]


class _Parser:
    """total = product {+- product}, product = signed {* / // signed}, signed = {+-} power,
    power = atom [** signed]."""

    def __init__(self, tokens: list[str | Number]):
        self.tokens = tokens

    def next_in(self, signs) -> bool:
        return bool(self.tokens) and isinstance(self.tokens[-1], str) and self.tokens[-1] in signs

    def total(self, depth: int) -> Number:
        value = self.product(depth)
        while self.next_in(_SUMS):
            value = _SUMS[self.tokens.pop()](value, self.product(depth))
        return value

    def product(self, depth: int) -> Number:
        value = self.signed(depth)
        while self.next_in(_PRODUCTS):
            sign, right = self.tokens.pop(), self.signed(depth)
            _check_size(_bits(value) + _bits(right) if sign == "*" else 0)
            value = _PRODUCTS[sign](value, right)
        return value

    def signed(self, depth: int) -> Number:
        signs = []
        while self.next_in(_SUMS):
            signs.append(self.tokens.pop())
        if len(signs) > MAX_SIGNS:
            raise NotArithmetic(f"more than {MAX_SIGNS} signs in a row")
        value = self.power(depth)
        for sign in reversed(signs):
            value = -value if sign == "-" else +value
        return value

    def power(self, depth: int) -> Number:
        base = self.atom(depth)
        if not self.next_in(("**",)):
            return base
        self.tokens.pop()
        exponent = self.signed(depth)
        if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
            _check_size(_bits(base) * exponent if abs(base) > 1 else 0)
        return base**exponent

    def atom(self, depth: int) -> Number:
        token = self.tokens.pop() if self.tokens else None
        if token == "(":
            value = self.total(depth + 1)
            if not self.tokens or self.tokens.pop() != ")":
                raise NotArithmetic("a parenthesis that does not close")
            return value
        if token is None or isinstance(token, str):
            raise NotArithmetic(f"{token!r} where a number should stand")
        return token


def _bits(value: Number) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_size(bits: int) -> None:
    if bits > MAX_BITS:
        raise NotArithmetic(f"a number of more than {MAX_BITS} bits")
