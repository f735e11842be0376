"""GSM8K: word problems of primary school whose answer is a number (arXiv 2110.14168).

Numbers are compared exactly, as fractions. What counts as the number of an answer is told by
`egspo.quantities.read_number`; the published grader takes floats of what its pattern finds first.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

from egspo import answers, quantities
from egspo.answers import MARK, shortened
from egspo.hub import DatasetSplit
from egspo.paper import gsm8k as paper
from egspo.paper import prompts, rewards
from egspo.quantities import NumberError
from egspo.records import Row
from egspo.tasks import base
from egspo.tasks.base import DatasetConfig, Part, Problem
from egspo.types import Grade

HUB = "openai/gsm8k"
INSTRUCTION = """\
{question}

Work it out step by step, then give the final answer, a number, in this form:
<answer>
\\boxed{{the number}}
</answer>"""
_CALCULATIONS = re.compile(r"<<[^<>]*>>")


class Task(base.DatasetTask):
    """Word problems whose answer is a number (GSM8K, arXiv 2110.14168)."""

    name = "gsm8k"
    description = "GSM8K: word problems of primary school whose answer is a number"
    version = "2"
    source = "arXiv 2110.14168; paper grader and prompt: d1, arXiv 2504.12216"
    parts: ClassVar[Mapping[str, Part]] = {
        "correct": Part("1 for the right number", 1.0),
        "formed": Part("1 for a closed answer that states one number", 0.1, "format"),
        "exact": Part("1 if the text of <answer> is the number as the data set writes it", 0.0),
        "tags": Part("share of the four tags <reasoning> and <answer> in their places", 0.0, "format"),
        "soft_format": Part("1 if the four tags come first and in order", 0.0, "format"),
        "strict_format": Part("1 if each tag has a line of its own and nothing else is there", 0.0, "format"),
        "integer": Part("1 if the text of <answer> is digits", 0.0, "format"),
    }
    grade_fields = ("answer",)
    Config = DatasetConfig
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {
        "train": (DatasetSplit(HUB, "train", "main"),),
        "test": (DatasetSplit(HUB, "test", "main"),),
    }

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        gold, written = read_gold(fields.get("answer"))
        parts = _shapes(answers.before_end(completion), written)
        text, closed = read_answer(completion)
        if text is None:
            return Grade(False, parts, None, "no closed answer")
        try:
            value = quantities.read_number(text)
        except NumberError as error:
            return Grade(False, parts, text, f"no number: {error}")
        correct = value == gold
        parts |= {"correct": float(correct), "formed": float(closed)}
        return Grade(
            correct, parts, text, f"equals {written}" if correct else f"{shortened(value)} is not {written}"
        )

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        written = read_gold(fields.get("answer"))[1]
        gold, value = paper.read_gold(written), paper.read_answer(completion)
        correct = value is not None and value == gold
        parts = dict.fromkeys(self.parts, 0.0) | {"correct": float(correct)}
        reason = "no number" if value is None else f"{value} {'equals' if correct else 'is not'} {gold}"
        return Grade(correct, parts, None if value is None else str(value), reason)

    def _parse(self, row: Row, split: str) -> Problem:
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question: {question!r}; give the text of the problem")
        written = read_gold(answer)[1]
        worked = isinstance(answer, str) and MARK in answer
        return {"question": question, "answer": written}, answer if worked else None

    def _key(self, fields: Mapping[str, Any]) -> str:
        return " ".join(fields["question"].split())

    def _question(self, fields: Mapping[str, Any]) -> str:
        question = fields["question"].strip()
        if self.config.prompt == "paper":
            return prompts.GSM8K + fields["question"]
        return question if self.config.prompt == "compact" else INSTRUCTION.format(question=question)

    def _completion(self, solution: str) -> str:
        reasoning, mark, number = _CALCULATIONS.sub("", solution).rpartition(MARK)
        return answers.worked(self.config.prompt, reasoning + mark + number.replace(",", ""))


def read_answer(completion: str) -> tuple[str | None, bool]:
    r"""The answer of a completion, and whether it is closed in ``\boxed`` or ``<answer>``.

    A text without a trace of either is itself the answer or, if it has ``####``, the line behind the last.
    """
    answer = answers.final_answer(completion)
    if answer is not None:
        return answer, True
    text = answers.answer_or_text(completion)
    if text is not None and MARK in text:
        text = text.rpartition(MARK)[2].strip().partition("\n")[0]
    return text, False


def read_gold(answer: Any) -> tuple[Fraction, str]:
    """Value and writing of a gold answer: a number, or the official text that ends in ``#### N``.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise ValueError(f"answer: {answer!r}; give a number, or the official text that ends in '#### N'")
    return _read_gold(answer)


@lru_cache(maxsize=65_536)
def _read_gold(answer: str) -> tuple[Fraction, str]:
    written = answer.rpartition(MARK)[2].strip()
    try:
        return quantities.read_number(written), written
    except NumberError as error:
        raise ValueError(
            f"answer: {written[:60]!r} is no number ({error}); give one, or the official text that ends "
            "in '#### N'"
        ) from None


def _shapes(text: str, written: str) -> dict[str, float]:
    answer = rewards.answer_of(text)
    return dict.fromkeys(Task.parts, 0.0) | {
        "exact": float(answer == written),
        "tags": rewards.tags(text),
        "soft_format": float(rewards.soft(text)),
        "strict_format": float(rewards.strict(text)),
        "integer": float(answer.isdigit()),
    }
