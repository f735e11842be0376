"""Countdown: reach a target with given numbers, each used exactly once (d1, arXiv 2504.12216).

The published reward: 1 for a right answer, 0.1 for a well-formed one that uses the right numbers, else 0.
Arithmetic is exact and nothing is evaluated as code (`egspo.answers.evaluate_expression`).
"""

import gzip
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from egspo import answers
from egspo.answers import ExpressionError
from egspo.tasks import base
from egspo.tasks.base import SPLITS, Part, TaskConfig
from egspo.types import Grade, Prompt

Tree = int | tuple[str, "Tree", "Tree"]
Problem = tuple[tuple[int, ...], int]

LARGEST = 10**9
MOST_SOLVED = 5
"""Problems of files with more numbers than this get no solution: the search would take seconds each."""
VAIN_DRAWS = 20_000
"""Draws in a row without a new problem after which there are taken to be no more."""
INSTRUCTION = """\
Reach the target {target} with the numbers {numbers}. Use every number exactly once, and only addition (+), \
subtraction (-), multiplication (*), division (/) and parentheses.

Work it out, then give one expression, without its result, between these tags:
<answer>
the expression
</answer>"""


class Config(TaskConfig):
    """Settings of generated problems, and files to read instead."""

    num_numbers: int = Field(3, ge=2, le=6, description="numbers of a generated problem")
    max_number: int = Field(99, ge=2, le=1_000, description="largest number of a generated problem")
    min_target: int = Field(10, ge=1, le=1_000_000, description="smallest target of a generated problem")
    max_target: int = Field(100, ge=1, le=1_000_000, description="largest target of a generated problem")
    operators: str = Field("+-*/", description="operators of generated problems; the grader takes all four")
    num_train: int = Field(20_000, ge=1, description="generated training problems")
    num_validation: int = Field(500, ge=1, description="generated validation problems")
    num_test: int = Field(1_000, ge=1, description="generated test problems, unless data is given")
    train_data: Path | None = Field(None, description="file of training problems (.jsonl or .jsonl.gz)")
    any_count: bool = Field(False, description="keep rows of train_data that do not have num_numbers numbers")
    solve_train_data: bool = Field(False, description="find solutions for train_data (SFT needs them)")

    @field_validator("train_data")
    @classmethod
    def _train_data_exists(cls, path: Path | None) -> Path | None:
        return cls._exists(path)

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


class Task(base.Task):
    """Reach a target with given numbers, each used exactly once (d1, arXiv 2504.12216)."""

    name = "countdown"
    description = "Countdown: reach a target with 3 numbers; generated, or read from a file"
    version = "1"
    source = "d1, arXiv 2504.12216; Jiayi-Pan/Countdown-Tasks-3to4"
    parts: ClassVar[Mapping[str, Part]] = {
        "correct": Part("1 for an expression that uses each number once and equals the target", 1.0),
        "formed": Part("1 for an expression that uses each number once and misses the target", 0.1, "format"),
        "closeness": Part("1 / (1 + |value - target|) if each number is used once, else 0", 0.0),
    }
    grade_fields = ("numbers", "target")
    max_number_token = 100
    Config = Config

    def load(self, split: str) -> Sequence[Prompt]:
        order, rows, seen = SPLITS[::-1], [], set()
        for part in order[: order.index(split) + 1]:
            rows = self._rows(part, seen)
            seen |= {_key(problem) for _, problem, _ in rows}
        return [self._prompt(*row) for row in rows]

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        numbers, target = _problem(fields.get("numbers"), fields.get("target"))
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
            return _grade(text, f"equals {_short(value)}, not {target}", formed=1.0, closeness=closeness)
        if stated != (target, [abs(target)]):
            return _grade(text, f"says that it equals {_short(stated[0])}", formed=1.0, closeness=closeness)
        return _grade(text, f"reaches {target}", correct=1.0, closeness=1.0)

    def _rows(self, split: str, seen: set) -> list[tuple[str, Problem, str | None]]:
        """(id, problem, solution) of a split that shares no problem with those ``seen``."""
        config = self.config
        if split == "test" and config.data is not None:
            return [(name, problem, solve(*problem)) for name, problem in _read(config.data)]
        if split == "train" and config.train_data is not None:
            return self._train_rows(config.train_data, seen)
        rng = random.Random(f"{config.seed} {split}")
        problems = _generate(config, f"num_{split}", set(seen), rng)
        return [(f"{split}-{i}", problem, solution) for i, (problem, solution) in enumerate(problems)]

    def _train_rows(self, path: Path, seen: set) -> list[tuple[str, Problem, str | None]]:
        config, rows = self.config, []
        for name, problem in _read(path):
            if _key(problem) not in seen and (config.any_count or len(problem[0]) == config.num_numbers):
                rows.append((name, problem, solve(*problem) if config.solve_train_data else None))
        if not rows:
            raise ValueError(
                f"task.train_data: {path} has no problem of {config.num_numbers} numbers that is not in "
                "test or validation; change task.num_numbers or set task.any_count"
            )
        return rows

    def _prompt(self, name: str, problem: Problem, solution: str | None) -> Prompt:
        (numbers, target), compact = problem, self.config.prompt == "compact"
        content = f"{','.join(map(str, numbers))}={target}"
        if not compact:
            content = INSTRUCTION.format(numbers=", ".join(map(str, numbers)), target=target)
            solution = solution and f"<answer>\n{solution}\n</answer>"
        fields = {"numbers": numbers, "target": target}
        return Prompt(({"role": "user", "content": content},), fields, solution, name)


@lru_cache(maxsize=65_536)
def solve(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that uses each number once and equals the target; None if there is none.

    Prefers one whose intermediate results are whole and positive; searches all rational ones otherwise. Not
    for more than `MOST_SOLVED` numbers: None.
    """
    if not 2 <= len(numbers) <= MOST_SOLVED:
        return None
    tree = _search(numbers, target)
    return write(_search(tuple(map(Fraction, numbers)), target) if tree is None else tree)


def write(tree: Tree | None) -> str | None:
    """A tree (sign, left, right) with as few parentheses as its value allows."""
    return tree if tree is None else _write(tree)[0]


def _write(tree: Tree) -> tuple[str, str]:
    """Text of a tree, and the sign that binds it together."""
    if not isinstance(tree, tuple):
        return str(tree), ""
    sign, (left, left_sign), (right, right_sign) = tree[0], _write(tree[1]), _write(tree[2])
    if sign in "*/" and left_sign and left_sign in "+-":
        left = f"({left})"
    if right_sign and (sign == "/" or (sign in "-*" and right_sign in "+-")):
        right = f"({right})"
    return f"{left}{sign}{right}", sign


def _search(numbers: tuple, target: int) -> Tree | None:
    """Values of every subset from below, the last operation from the target above.

    Ints are combined to positive ints only, Fractions to any Fractions.
    """
    everything = (1 << len(numbers)) - 1
    reach = {1 << i: {number: number} for i, number in enumerate(numbers)}
    for subset in sorted(range(1, everything), key=int.bit_count):
        if subset in reach:
            continue
        values = reach[subset] = {}
        for part in _parts(subset):
            for (a, left), (b, right) in itertools.product(reach[part].items(), reach[subset ^ part].items()):
                for sign, value in _combine(a, b):
                    values.setdefault(value, (sign, left, right))
    for part in _parts(everything):
        others = reach[everything ^ part]
        for a, left in reach[part].items():
            for sign, b in _missing(a, target):
                if b in others:
                    return sign, left, others[b]
    return None


def _parts(subset: int) -> Iterator[int]:
    """Non-empty proper subsets of a set of bits."""
    part = (subset - 1) & subset
    while part:
        yield part
        part = (part - 1) & subset


def _combine(a, b) -> Iterator[tuple[str, Any]]:
    yield "+", a + b
    yield "*", a * b
    if isinstance(a, int):
        if a > b:
            yield "-", a - b
        if a % b == 0:
            yield "/", a // b
    else:
        yield "-", a - b
        if b:
            yield "/", a / b


def _missing(a, target: int) -> Iterator[tuple[str, Any]]:
    """Second operands that turn ``a`` into the target."""
    yield "+", target - a
    yield "-", a - target
    whole = isinstance(a, int)
    if a and not (whole and target % a):
        yield "*", target // a if whole else target / a
    if a and target and not (whole and a % target):
        yield "/", a // target if whole else a / target


def _generate(config: Config, field: str, seen: set, rng: random.Random) -> list[tuple[Problem, str]]:
    """Problems that are not in ``seen`` and differ from each other, solved in positive whole numbers.

    A problem is drawn from its target down: an operator, two operands that give the value, and so on.
    """
    problems, vain, wanted = [], 0, getattr(config, field)
    while len(problems) < wanted:
        target = rng.randint(config.min_target, config.max_target)
        tree = _draw(rng, target, config.num_numbers, config)
        numbers = [] if tree is None else _leaves(tree)
        key = (tuple(sorted(numbers)), target)
        if tree is None or key in seen:
            vain += 1
            if vain == VAIN_DRAWS:
                raise ValueError(
                    f"task.{field}: only {len(problems)} of {wanted} different problems found; lower "
                    f"task.{field} or widen the ranges of task.max_number, min_target and max_target"
                )
            continue
        vain = 0
        seen.add(key)
        rng.shuffle(numbers)
        problems.append(((tuple(numbers), target), write(tree)))
    return problems


def _draw(rng: random.Random, value: int, count: int, config: Config) -> Tree | None:
    """A random tree of ``count`` numbers with the given value; None if the draw came to nothing."""
    if count == 1:
        return value if value <= config.max_number else None
    num_left = rng.randrange(1, count)
    sign = rng.choice(config.operators)
    largest = config.max_number ** (1 if num_left == 1 else 2)
    operands = _split(rng, sign, value, largest, config.max_number)
    if operands is None:
        return None
    left = _draw(rng, operands[0], num_left, config)
    right = None if left is None else _draw(rng, operands[1], count - num_left, config)
    return None if right is None else (sign, left, right)


def _split(
    rng: random.Random, sign: str, value: int, largest_left: int, largest_right: int
) -> tuple[int, int] | None:
    """Positive whole operands that give a value, never a factor or divisor 1; None if the draw finds none."""
    if sign == "+":
        choices = range(1, value)
    elif sign == "-":
        choices = range(1, min(largest_left - value, largest_right) + 1)
    elif sign == "*":
        choices = _factors(value)
    else:
        choices = range(2, min(largest_left // value, largest_right) + 1)
    if not choices:
        return None
    right = rng.choice(choices)
    left = {"+": value - right, "-": value + right, "*": value // right, "/": value * right}[sign]
    return left, right


@lru_cache(maxsize=65_536)
def _factors(value: int) -> list[int]:
    small = [factor for factor in range(2, math.isqrt(value) + 1) if value % factor == 0]
    return sorted({*small, *(value // factor for factor in small)})


def _leaves(tree: Tree) -> list[int]:
    return _leaves(tree[1]) + _leaves(tree[2]) if isinstance(tree, tuple) else [tree]


def _key(problem: Problem) -> Problem:
    """What makes two problems the same: the numbers in any order, and the target."""
    return tuple(sorted(problem[0])), problem[1]


def _grade(text: str | None, reason: str, **parts: float) -> Grade:
    return Grade("correct" in parts, {name: parts.get(name, 0.0) for name in Task.parts}, text, reason)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _short(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _problem(numbers: Any, target: Any) -> Problem:
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


def _read(path: Path) -> Iterator[tuple[str, Problem]]:
    """(id, problem) of every row: ``numbers`` and ``target``, or d1's ``input`` "a,b,c" and ``output``.

    Raises:
        ValueError: for an unreadable file or a broken row, with its line.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path}: unknown kind of file; give .jsonl or .jsonl.gz")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            rows = [(line, text) for line, text in enumerate(file, 1) if text.strip()]
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable jsonl file ({error}); save it as UTF-8 text") from error
    if not rows:
        raise ValueError(f"{path}: holds no problems; give one JSON object with numbers and target per line")
    for line, text in rows:
        try:
            row = json.loads(text)
            row = row if isinstance(row, dict) else {}
            problem = _problem(row.get("numbers", row.get("input")), row.get("target", row.get("output")))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}; write one JSON object per line") from error
        yield f"{path.name}:{line}", problem
