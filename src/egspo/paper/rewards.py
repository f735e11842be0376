"""Shapes of a completion that d1 (arXiv 2504.12216) rewards when it trains on GSM8K; after Will Brown's
GRPO demo.

Each value lies in [0, 1]. Source: ``diffu-grpo/reward_func.py`` in github.com/dllm-reasoning/d1, whose
weights the docs page of gsm8k gives.
"""

import re

_OPENING = "<reasoning>\n"
_BETWEEN = "\n</reasoning>\n<answer>\n"
_CLOSING = "\n</answer>\n"
_JOINT = re.compile(r"</reasoning>\s*<answer>")


def answer_of(text: str) -> str:
    """What follows the last ``<answer>`` up to ``</answer>``, each of which may be missing."""
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def tags(text: str) -> float:
    """A quarter for each of the four tags that stands once on its own line, less 1/500 a character after.

    Characters behind the answer count once for each of the two tags around it. The published value may fall
    below zero, this one does not.
    """
    marks = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")
    value = sum(text.count(mark) == 1 for mark in marks) / 4
    if text.count("\n<answer>\n") == 1:
        value -= len(text.rpartition(_CLOSING)[2]) / 500
    if text.count("\n</answer>") == 1:
        value -= (len(text.rpartition("\n</answer>")[2]) - 1) / 500
    return min(max(value, 0.0), 1.0)


def strict(text: str) -> bool:
    """Whether the text is the four tags, each on a line of its own, and nothing besides."""
    between = text.find(_BETWEEN, len(_OPENING))
    ends = [text[:-1] if text.endswith("\n\n") else text, text]
    fits = any(t.endswith(_CLOSING) and len(t) - len(_CLOSING) >= between + len(_BETWEEN) for t in ends)
    return text.startswith(_OPENING) and between >= 0 and fits


def soft(text: str) -> bool:
    """Whether the text begins with the four tags in their order."""
    joint = _JOINT.search(text, len("<reasoning>"))
    return text.startswith("<reasoning>") and joint is not None and "</answer>" in text[joint.end() :]
