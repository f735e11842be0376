r"""d1's rules for MATH-500, which are those of the MATH benchmark's own string comparison (arXiv
2103.03874).

The answer is the last ``\boxed``; a text without any is itself the answer; only an empty or unclosed box
gives way to the first ``<answer>``. Two answers are equal if they are after a fixed list of replacements,
or as they stand where that list does not apply.
"""

from egspo.paper.gsm8k import first_answer_tag

_SPACED = "\\boxed "


class NotRead(Exception):
    """The rules come to no result on this text."""


def read_answer(text: str) -> str | None:
    try:
        answer = boxed(text)
    except NotRead:
        answer = None
    return answer or _tagged(text, answer)


def _tagged(text: str, answer: str | None) -> str | None:
    tag = first_answer_tag(text)
    return answer if tag is None else tag


def boxed(text: str) -> str:
    r"""Content of the last ``\boxed{…}`` (also of ``\boxed …`` up to a dollar sign); the text if it has none.

    Raises:
        NotRead: if the last box does not close.
    """
    if _SPACED in text:
        return text.rpartition(_SPACED)[2].partition("$")[0]
    start = text.rfind("\\boxed")
    start = text.rfind("\\fbox") if start < 0 else start
    if start < 0:
        return text
    box = text[start : _closing(text, start) + 1]
    return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else box


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
    raise NotRead


def equal(first: str, second: str) -> bool:
    try:
        return normal(first) == normal(second)
    except NotRead:
        return first == second


def normal(text: str) -> str:
    """What two equal answers have in common.

    Raises:
        NotRead: for a text on which the published rules fail.
    """
    for old, new in [("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")]:
        text = text.replace(old, new)
    for old in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(old, "")
    if text.count("\\text{ ") > 1:
        raise NotRead
    text = text.partition("\\text{ ")[0].replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    if text.count("=") == 1 and text.index("=") <= 2:
        text = text.partition("=")[2]
    text = _brace_roots(text).replace(" ", "")
    text = _brace_fractions(text)
    return _as_fraction("\\frac{1}{2}" if text == "0.5" else text)


def _brace_roots(text: str) -> str:
    before, *parts = text.split("\\sqrt")
    if "" in parts:
        raise NotRead
    return before + "".join("\\sqrt" + (p if p[0] == "{" else f"{{{p[0]}}}{p[1:]}") for p in parts)


def _brace_fractions(text: str) -> str:
    r"""Braces around the halves of ``\frac12`` and ``\frac1{…}``; the text itself if one lacks its second."""
    before, *parts = text.split("\\frac")
    done = [before]
    for part in parts:
        if not part:
            raise NotRead
        if part[0] == "{":
            done.append(part)
        elif len(part) < 2:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            done.append(f"{{{part[0]}}}{below}")
    return "\\frac".join(done)


def _as_fraction(text: str) -> str:
    r"""``\frac{a}{b}`` for ``a/b`` of two whole numbers; with others beside one slash the rules fail."""
    if text.count("/") != 1:
        return text
    try:
        above, below = map(int, text.split("/"))
    except ValueError:
        raise NotRead from None
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
