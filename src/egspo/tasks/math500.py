r"""MATH-500: competition problems whose answer is a formula (arXiv 2103.03874; the 500 of arXiv
2305.20050).

Two answers are compared by their shapes (`egspo.equality`), and where their writing does not decide by
math-verify in worker processes with hard limits (`egspo.symbolic`). Training is on the train split of MATH.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from egspo import answers, symbolic
from egspo.hub import DatasetSplit
from egspo.latex import LatexError
from egspo.paper import math500 as paper
from egspo.paper import prompts
from egspo.records import Row
from egspo.sandbox import SandboxConfig
from egspo.tasks import base
from egspo.tasks.base import DatasetConfig, Part, Problem
from egspo.types import Grade
from egspo.workers import Overrun

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
INSTRUCTION = """\
{problem}

Work it out step by step, then give the final answer in this form:
<answer>
\\boxed{{the answer}}
</answer>"""


class Task(base.DatasetTask):
    """Competition problems whose answer is a formula (MATH, arXiv 2103.03874)."""

    name = "math500"
    description = "MATH-500: competition problems whose answer is a formula; training on MATH's train split"
    version = "3"
    source = "arXiv 2103.03874, 2305.20050; paper grader and prompt: d1, arXiv 2504.12216"
    parts: ClassVar[Mapping[str, Part]] = {
        "correct": Part("1 for an answer that equals the gold one", 1.0),
        "boxed": Part("1 for a complete \\boxed within a closed <answer>", 0.1, "format"),
        "tagged": Part("1 if <answer> is opened", 0.0, "format"),
    }
    grade_fields = ("answer",)
    Config = DatasetConfig
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {
        "train": tuple(DatasetSplit("EleutherAI/hendrycks_math", "train", subject) for subject in SUBJECTS),
        "test": (DatasetSplit("HuggingFaceH4/MATH-500", "test"),),
    }

    def prepare(self, sandbox: SandboxConfig) -> None:
        symbolic.pool().start()

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        gold = _read_gold(fields)
        parts = _forms(answers.before_end(completion))
        text = answers.answer_or_text(completion)
        if text is None:
            return Grade(False, parts, None, "no closed answer")
        try:
            correct = symbolic.equal(gold, text)
        except (LatexError, Overrun) as error:
            return Grade(False, parts, text, f"not compared: {error}")
        reason = f"{'equals' if correct else 'is not'} {gold}"
        return Grade(correct, parts | {"correct": float(correct)}, text, reason)

    def grade_all(self, completions: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[Grade]:
        with ThreadPoolExecutor(symbolic.pool().size) as threads:
            return list(threads.map(self.grade, completions, fields))

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        gold, text = _read_gold(fields), paper.read_answer(completion)
        correct = text is not None and paper.equal(text, gold)
        parts = dict.fromkeys(self.parts, 0.0) | {"correct": float(correct)}
        reason = "no answer" if text is None else f"{'equals' if correct else 'is not'} {gold}"
        return Grade(correct, parts, text, reason)

    def _parse(self, row: Row, split: str) -> Problem | None:
        problem, solution, answer = row.get("problem"), row.get("solution") or None, row.get("answer")
        if not isinstance(problem, str) or not problem.strip():
            raise ValueError(f"problem: {problem!r}; give the text of the problem")
        if answer is None and isinstance(solution, str):
            answer = boxed_answer(solution)
        if split == "train" and answer in (None, ""):
            return None  # a few published solutions box nothing, and some files keep such rows
        fields = {
            "problem": problem,
            "answer": answer,
            "level": row.get("level"),
            "subject": row.get("subject"),
        }
        _read_gold(fields)
        return fields, solution and f"{solution}\n{answers.MARK} {answer}"

    def _key(self, fields: Mapping[str, Any]) -> str:
        return "".join(fields["problem"].split())

    def _question(self, fields: Mapping[str, Any]) -> str:
        problem = fields["problem"].strip()
        if self.config.prompt == "paper":
            return prompts.MATH500 + fields["problem"]
        return problem if self.config.prompt == "compact" else INSTRUCTION.format(problem=problem)

    def _completion(self, solution: str) -> str:
        return answers.worked(self.config.prompt, solution)


def boxed_answer(solution: str) -> str | None:
    r"""The answer of a published solution: its last ``\boxed{…}``, also ``\boxed 5`` or ``\fbox{…}``."""
    answer = answers.last_boxed(solution.replace("\\fbox", "\\boxed"))
    if answer is not None:
        return answer
    bare = re.findall(r"\\boxed\s+([^\s$]+)", solution)
    return bare[-1].strip(".,") if bare else None


def _read_gold(fields: Mapping[str, Any]) -> str:
    """The gold answer of a row.

    Raises:
        ValueError: if there is none.
    """
    answer = fields.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"answer: {answer!r}; give the gold answer as LaTeX text")
    return answer


def _forms(text: str) -> dict[str, float]:
    tag = answers.last_answer_tag(text)
    boxed = tag is not None and answers.last_boxed(tag) is not None
    return {"correct": 0.0, "boxed": float(boxed), "tagged": float("<answer>" in text)}
