r"""Whether two mathematical answers are the same, by their shapes; of values that differ in writing one asks.

Of the same shape means: lists and sets agree in any order, tuples and intervals in order and in their
brackets, unions in any order, matrices cell by cell, numbers exactly (``0.333`` is not ``1/3``), numerals
with a base (``1011_2``) in base and digits. ``x = 5`` is what ``5`` is, words are compared as words, and
units are not compared.
"""

import re
from collections.abc import Callable

from egspo import latex
from egspo.latex import EQUATION, LIST, MATRIX, RATIO, TUPLE, UNION, VALUE, Shape
from egspo.rationals import MOST_DIGITS, rational

Ask = Callable[[str, str], bool]
"""Whether two values in LaTeX are equal, for those whose writing does not tell."""

_BASE = re.compile(r"\(?(-?[0-9A-Z.]+)\)?_(?:\{?\s*\"?([0-9]+|[a-z]+)\"?\s*\}?)")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_WORD = re.compile("[A-Za-z]{4,}")
"""Four letters or more are a word, fewer may be a product."""
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|neq?)(?![A-Za-z])")


def equal(gold: str, given: str, ask: Ask | None = None) -> bool | None:
    """Whether an answer equals the gold one. None: their writing does not tell, and there is nobody to ask.

    Raises:
        LatexError: if one is longer, deeper or has more parts than is read.
    """
    shape = latex.read(given)
    verdicts = [_same(reading, shape, ask) for reading in latex.readings(gold)]
    return True if True in verdicts else None if None in verdicts else False


def _same(gold: Shape, given: Shape, ask: Ask | None) -> bool | None:
    if _writing(gold) == _writing(given) and gold.mark == given.mark:
        return bool(given.text)
    if gold.kind == EQUATION or given.kind == EQUATION:
        return _same_equation(gold, given, ask)
    if gold.kind == LIST and given.kind == VALUE and given.parts:
        return _same_in_any_order(gold, given, ask) if len(gold.parts) == len(given.parts) else False
    if gold.kind != given.kind:
        # An interval may be written as an inequality; nothing else may stand for another kind.
        values = [shape for shape in (gold, given) if shape.kind == VALUE and _RELATION.search(shape.text)]
        intervals = [shape for shape in (gold, given) if shape.kind in (TUPLE, UNION)]
        return _ask(gold, given, ask) if values and intervals else False
    if gold.mark != given.mark:
        return False
    if gold.kind == VALUE:
        return _same_value(gold, given, ask)
    if len(gold.parts) != len(given.parts):
        return False
    if gold.kind in (TUPLE, MATRIX, RATIO):
        return _all(_same(*pair, ask) for pair in zip(gold.parts, given.parts, strict=True))
    assert gold.kind in (LIST, UNION)
    return _same_in_any_order(gold, given, ask)


def _same_in_any_order(gold: Shape, given: Shape, ask: Ask | None) -> bool | None:
    """Each gold part takes the first that equals it: as equality is transitive, no other does better.

    Bare values beside named ones (``x = 1, y = 2``) are in their order.
    """
    names = [part.parts[0].text for part in gold.parts if part.kind == EQUATION]
    bare = all(part.kind != EQUATION for part in given.parts)
    if bare and len(set(names)) == len(names) == len(given.parts) > 1:
        return _all(_same(*pair, ask) for pair in zip(gold.parts, given.parts, strict=True))
    left, unknown = list(given.parts), False
    for part in gold.parts:
        verdicts = [_same(part, other, None) for other in left]
        at = next((i for i, verdict in enumerate(verdicts) if verdict), None)
        if at is None and None in verdicts:
            if ask is None:
                unknown = True
                continue
            open_ = (i for i, verdict in enumerate(verdicts) if verdict is None)
            at = next((i for i in open_ if _same(part, left[i], ask)), None)
        if at is None:
            return False
        del left[at]
    return None if unknown else True


def _same_equation(gold: Shape, given: Shape, ask: Ask | None) -> bool | None:
    """``x = 5`` beside ``5`` is the value named; two names must agree; other equations are asked for."""
    named = [s.kind == EQUATION and latex.is_name(s.parts[0]) for s in (gold, given)]
    if all(named) and gold.parts[0].text == given.parts[0].text:
        return _same(gold.parts[1], given.parts[1], ask)
    if gold.kind == given.kind:
        values = [rational(shape.parts[1].text) is not None for shape in (gold, given)]
        return False if all(named) and all(values) else _ask(gold, given, ask)
    if named[0]:
        return _same(gold.parts[1], given, ask)
    return _same(gold, given.parts[1], ask) if named[1] else False


def _same_value(gold: Shape, given: Shape, ask: Ask | None) -> bool | None:
    numbers = rational(gold.text), rational(given.text)
    if None not in numbers:
        return numbers[0] == numbers[1]
    texts = latex.words(gold), latex.words(given)
    if texts != (None, None) or all(_WORD.fullmatch(shape.text) for shape in (gold, given)):
        return _key(texts[0] or gold.text) == _key(texts[1] or given.text)
    bases = _base(gold.text), _base(given.text)
    if None not in bases:
        return bases[0] == bases[1]
    if any(base and base[1] != 10 for base in bases) or not given.text:
        return False
    if re.search(r"[0-9]\s+[0-9]", given.text):
        return False  # two numbers side by side are no product
    if bool(_names(gold.text)) != bool(_names(given.text)):
        return False  # a constant is no expression in a variable
    return _ask(gold, given, ask)


def _names(text: str) -> list[str]:
    """Variables of an expression; e and i may be constants."""
    return re.findall("[A-DF-HJ-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", " ", text))


def _base(text: str) -> tuple[str, int] | None:
    """Digits and base of a numeral; a plain whole number is one in base ten."""
    text = _joined(text)
    if re.fullmatch("-?[0-9]+", text):
        return str(int(text)) if len(text) < MOST_DIGITS else text, 10
    match = _BASE.fullmatch(text)
    base = match and (_BASES.get(match[2]) or (int(match[2]) if match[2].isdigit() else None))
    return (re.sub("^(-?)0+(?=[0-9A-Z])", r"\1", match[1]), base) if base else None


def _key(text: str) -> str:
    """Letters and digits of words; a single letter, which may name a choice or a point, keeps its case."""
    key = re.sub(r"[^A-Za-z0-9]", "", re.sub(r"\\text[a-z]*", "", text))
    return key if len(key) == 1 else key.lower()


def _ask(gold: Shape, given: Shape, ask: Ask | None) -> bool | None:
    return None if ask is None else ask(gold.text, given.text)


def _writing(shape: Shape) -> str:
    return _joined(shape.text.replace('"', " "))


def _joined(text: str) -> str:
    """A text without its blanks, but for those that keep numbers apart: ``1 1/2`` is not ``11/2``."""
    return re.sub(r"\s+", " ", re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text))


def _all(verdicts) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True
