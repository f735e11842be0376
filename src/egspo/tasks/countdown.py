"""Countdown: reach a target with given numbers, each used exactly once (d1, arXiv 2504.12216).

The published reward: 1 for a right answer, 0.1 for a well-formed one that uses the right numbers, else 0.
Arithmetic is exact and nothing is evaluated as code (`egspo.answers.evaluate_expression`).

Solutions are written in one form, so that a model that learns from them need not guess between spellings of
one calculation: no parentheses that change nothing, what is added before what is subtracted, what multiplies
before what divides, and among these the larger value first. ``5*(1+8)`` is written ``(8+1)*5``, ``7-(5-9)``
is ``9+7-5``. The grader accepts any form.
"""

import itertools
import math
import operator
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from egspo import answers
from egspo.answers import ExpressionError, shortened
from egspo.paper import countdown as paper
from egspo.paper.prompts import COUNTDOWN as PAPER
from egspo.records import Row
from egspo.tasks import base
from egspo.tasks.base import GeneratedConfig, Part, Problem
from egspo.types import Grade, Prompt

Tree = int | tuple
"""A number, or (sign, left tree, right tree)."""

LARGEST = 10**9
MOST_SOLVED = 5
"""Problems of files with more numbers than this get no solution: the search would take seconds each."""
VAIN_DRAWS = 20_000
"""Draws in a row without a new problem after which there are taken to be no more."""
TRIES = 10
"""Draws for one target and one choice of operators, so that those which are hard to meet are not rare."""
_VALUE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": Fraction}
_LEFT_OPERAND = {"+": operator.sub, "-": operator.add, "*": operator.floordiv, "/": operator.mul}
INSTRUCTION = """\
Reach the target {target} with the numbers {numbers}. Use every number exactly once, and only addition (+), \
subtraction (-), multiplication (*), division (/) and parentheses.

Work it out, then give one expression, without its result, between these tags:
<answer>
the expression
</answer>"""


class Config(GeneratedConfig):
    """Settings of generated problems, and of the rows of a training file."""

    num_numbers: int = Field(3, ge=2, le=6, description="numbers of a generated problem")
    max_number: int = Field(99, ge=2, le=1_000, description="largest number of a generated problem")
    min_target: int = Field(10, ge=1, le=1_000_000, description="smallest target of a generated problem")
    max_target: int = Field(100, ge=1, le=1_000_000, description="largest target of a generated problem")
    operators: str = Field("+-*/", description="operators of generated solutions; the grader takes all four")
    any_count: bool = Field(False, description="keep rows of train_data that do not have num_numbers numbers")
    solve_train_data: bool = Field(False, description="find solutions for train_data (SFT needs them)")

    @field_validator("operators")
    @classmethod
    def _operators(cls, operators: str) -> str:
        if not operators or not set(operators) <= set("+-*/") or len(set(operators)) < len(operators):
            raise ValueError(f"{operators!r} are no operators; give one or more of +-*/, each once")
        return operators

    @model_validator(mode="after")
    def _targets(self) -> "Config":
        if self.min_target > self.max_target:
            raise ValueError(
                f"min_target {self.min_target} exceeds max_target {self.max_target}; lower min_target to "
                f"{self.max_target} or less"
            )
        return self


class Task(base.GeneratedTask):
    """Reach a target with given numbers, each used exactly once (d1, arXiv 2504.12216)."""

    name = "countdown"
    description = "Countdown: reach a target with 3 numbers; generated, or read from a file"
    version = "3"
    source = "d1, arXiv 2504.12216; Jiayi-Pan/Countdown-Tasks-3to4"
    parts: ClassVar[Mapping[str, Part]] = {
        "correct": Part("1 for an expression that uses each number once and equals the target", 1.0),
        "formed": Part("1 for an expression that uses each number once and misses the target", 0.1, "format"),
        "closeness": Part("1 / (1 + |value - target|) if each number is used once, else 0", 0.0),
    }
    grade_fields = ("numbers", "target")
    Config = Config
    prompts = ("instruct", "compact", "paper")

    @property
    def max_number_token(self) -> int:
        return max(self.config.max_number, self.config.max_target)

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        numbers, target = _read_problem(fields.get("numbers"), fields.get("target"))
        text = answers.answer_or_text(completion, bare=self.config.prompt == "compact")
        if text is None:
            return _grade(None, "no closed answer")
        left, equals, right = (part.strip().strip("$") for part in text.strip().partition("="))
        try:
            value, used = answers.evaluate_expression(left)
            stated = answers.evaluate_expression(right) if equals else (target, [abs(target)])
        except ExpressionError as error:
            return _grade(text, f"no expression: {error}")
        if sorted(used) != sorted(numbers):
            return _grade(text, f"uses {_list(used)}, not {_list(numbers)}")
        closeness = float(1 / (1 + abs(value - target)))
        if value != target:
            return _grade(text, f"equals {shortened(value)}, not {target}", formed=1.0, closeness=closeness)
        if stated != (target, [abs(target)]):
            return _grade(
                text, f"says that it equals {shortened(stated[0])}", formed=1.0, closeness=closeness
            )
        return _grade(text, f"reaches {target}", correct=1.0, closeness=1.0)

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        problem = _read_problem(fields.get("numbers"), fields.get("target"))
        expression = paper.read_expression(completion)
        correct, reason = paper.verdict(expression, *problem)
        return _grade(expression, reason, **({"correct": 1.0} if correct else {}))

    def _generate(self, split: str) -> list[Problem]:
        seen, problems = self._held_out(split), []
        wanted, rng = getattr(self.config, f"num_{split}"), random.Random(f"{self.config.seed} {split}")
        while len(problems) < wanted:
            draws = (_draw_problem(self.config, rng) for _ in range(VAIN_DRAWS))
            new = next((drawn for drawn in draws if drawn and self._key(drawn[0]) not in seen), None)
            if new is None:
                raise ValueError(
                    f"task.num_{split}: {wanted} problems, but only {len(problems)} were found that no later "
                    f"split has; lower task.num_{split} to that, or widen the ranges of task.max_number, "
                    "min_target and max_target"
                )
            seen.add(self._key(new[0]))
            problems.append(new)
        return problems

    def _parse(self, row: Row, split: str) -> Problem | None:
        numbers = next((row[name] for name in ("numbers", "nums", "input") if name in row), None)
        given = numbers, row.get("target", row.get("output"))
        numbers, target = _read_problem(*given)
        if split == "train" and not self.config.any_count and len(numbers) != self.config.num_numbers:
            return None
        wanted = split == "test" or self.config.solve_train_data
        return {"numbers": numbers, "target": target}, solve(numbers, target) if wanted else None

    def _read(self, path: Path, field: str, split: str) -> list[Prompt]:
        prompts = super()._read(path, field, split)
        if not prompts:
            raise ValueError(
                f"task.{field}: {path} has no problem of {self.config.num_numbers} numbers; change "
                "task.num_numbers or set task.any_count"
            )
        return prompts

    def _key(self, fields: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """The numbers in any order, and the target."""
        return tuple(sorted(fields["numbers"])), fields["target"]

    def _completion(self, solution: str) -> str:
        return super()._completion(f"\\boxed{{{solution}}}" if self.config.prompt == "paper" else solution)

    def _question(self, fields: Mapping[str, Any]) -> str:
        numbers, target = map(str, fields["numbers"]), fields["target"]
        if self.config.prompt == "compact":
            return f"{','.join(numbers)}={target}"
        if self.config.prompt == "paper":
            return f"{PAPER}Numbers: [{', '.join(numbers)}]\nTarget: {target}"
        return INSTRUCTION.format(numbers=", ".join(numbers), target=target)


@lru_cache(maxsize=65_536)
def solve(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that uses each number once and equals the target; None if there is none.

    Prefers one that is found by way of positive whole numbers; searches all rational ones otherwise. Not for
    more than `MOST_SOLVED` numbers: None.
    """
    if not 2 <= len(numbers) <= MOST_SOLVED:
        return None
    terms = [(number, number) for number in numbers]
    tree = _search(terms, target, whole=True) or _search(terms, target, whole=False)
    return None if tree is None else write(tree)


def _search(terms: list[tuple[Any, Tree]], target: int, whole: bool) -> Tree | None:
    """Puts the result of two terms (value, tree) in their place until one is left that equals the target."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for i, j in itertools.permutations(range(len(terms)), 2):
        (a, left), (b, right) = terms[i], terms[j]
        others = [term for k, term in enumerate(terms) if k not in (i, j)]
        for sign in "+-*/" if a >= b else "-/":
            value = None if sign == "/" and b == 0 else _VALUE[sign](a, b)
            if value is None or (whole and (value <= 0 or value.denominator > 1)):
                continue
            tree = _search([*others, (value, (sign, left, right))], target, whole)
            if tree is not None:
                return tree
    return None


def write(tree: Tree) -> str:
    """A tree in the one form that the module describes."""
    if not isinstance(tree, tuple):
        return str(tree)
    chain = "+-" if tree[0] in "+-" else "*/"
    terms = [(sign == chain[1], -_value(term), sign, write(term)) for sign, term in _terms(tree, chain)]
    bare = chain == "+-"
    texts = [sign + (text if bare or text.isdigit() else f"({text})") for *_, sign, text in sorted(terms)]
    return "".join(texts)[1:]


def _value(tree: Tree) -> Fraction | int:
    return _VALUE[tree[0]](_value(tree[1]), _value(tree[2])) if isinstance(tree, tuple) else tree


def _terms(tree: Tree, chain: str) -> list[tuple[str, Tree]]:
    """Signs and operands of a whole sum (``chain`` "+-") or product ("*/"), its parentheses resolved."""
    if not isinstance(tree, tuple) or tree[0] not in chain:
        return [(chain[0], tree)]
    sign, left, right = tree
    turned = dict(zip(chain, chain if sign == chain[0] else chain[::-1], strict=True))
    return _terms(left, chain) + [(turned[inner], operand) for inner, operand in _terms(right, chain)]


def _draw_problem(config: Config, rng: random.Random) -> Problem | None:
    """A problem solved in positive whole numbers, drawn from its target down; None if the draw found none."""
    target = rng.randint(config.min_target, config.max_target)
    signs = rng.choices(config.operators, k=config.num_numbers - 1)
    draws = (_draw(rng, target, rng.sample(signs, len(signs)), config.max_number) for _ in range(TRIES))
    tree = next(filter(None, draws), None)
    if tree is None or set(solution := write(tree)) & set("+-*/") - set(config.operators):
        return None
    numbers = _leaves(tree)
    rng.shuffle(numbers)
    return {"numbers": tuple(numbers), "target": target}, solution


def _draw(rng: random.Random, value: int, signs: list[str], max_number: int) -> Tree | None:
    """A random tree of the given operators and value, never with a factor or divisor 1; None if it failed."""
    if not signs:
        return value if value <= max_number else None
    sign, *others = signs
    num_left = rng.randint(0, len(others))
    choices = _right_operands(sign, value, max_number ** (2 if num_left else 1), max_number)
    if not choices:
        return None
    operand = rng.choice(choices)
    left = _draw(rng, _LEFT_OPERAND[sign](value, operand), others[:num_left], max_number)
    right = None if left is None else _draw(rng, operand, others[num_left:], max_number)
    return None if right is None else (sign, left, right)


def _right_operands(sign: str, value: int, largest_left: int, largest_right: int) -> Sequence[int]:
    if sign == "+":
        return range(1, value)
    if sign == "*":
        return _factors(value)
    if sign == "-":
        return range(1, min(largest_left - value, largest_right) + 1)
    return range(2, min(largest_left // value, largest_right) + 1)


@lru_cache(maxsize=65_536)
def _factors(value: int) -> list[int]:
    small = [factor for factor in range(2, math.isqrt(value) + 1) if value % factor == 0]
    return sorted({*small, *(value // factor for factor in small)})


def _leaves(tree: Tree) -> list[int]:
    return _leaves(tree[1]) + _leaves(tree[2]) if isinstance(tree, tuple) else [tree]


def _grade(text: str | None, reason: str, **parts: float) -> Grade:
    return Grade("correct" in parts, {name: parts.get(name, 0.0) for name in Task.parts}, text, reason)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _read_problem(numbers: Any, target: Any) -> tuple[tuple[int, ...], int]:
    """Numbers and target of a row: ints, or text as in d1's file.

    Raises:
        ValueError: if they are not positive whole numbers and a whole target.
    """
    numbers = numbers.split(",") if isinstance(numbers, str) else numbers
    numbers = [_whole(number) for number in numbers] if isinstance(numbers, list | tuple) else []
    if not numbers or None in numbers or min(numbers) < 1:
        raise ValueError("numbers: give a list of positive whole numbers")
    if _whole(target) is None:
        raise ValueError(f"target: {target!r}; give a whole number")
    return tuple(numbers), _whole(target)


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,10}\s*", value):
        value = int(value)
    return value if type(value) is int and abs(value) <= LARGEST else None
