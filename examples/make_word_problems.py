"""Arithmetic word problems in GSM8K's format, small enough for a model that is trained from scratch.

    python examples/make_word_problems.py data/words --num 20000 --steps 2 --max-number 20

writes ``train.jsonl`` and ``test.jsonl`` with ``question`` and ``answer``: one calculation a line, then
``#### N``, as in the published files. Questions have fewer than 70 characters, reasoning fewer than 40.

No question comes twice, and no calculation is in both files, whoever buys whatever in it: a tenth of all
calculations, chosen by the seed, is kept for the test. One of the factors of a product is below 10.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMES = ("Ann", "Ben", "Eva", "Ida", "Jim", "Kai", "Leo", "Mia", "Max", "Noa", "Pia", "Sam", "Tom", "Zoe")
ITEMS = ("pens", "nuts", "eggs", "cups", "caps", "coins", "books", "cards", "balls", "keys", "pears")
GAINS = ("buys {} more", "finds {} more", "gets {} more", "wins {} more")
LOSSES = ("loses {}", "sells {}", "gives {} away", "breaks {}")
SHARES = ("puts them in {} equal bags", "shares them among {} friends")
ENDINGS = {"+": "How many now?", "-": "How many are left?", "*": "How many in all?", "/": "How many each?"}
LARGEST = 999
HELD_OUT = 10
"""One calculation in this many is for the test file."""
TRIES = 100
"""Draws for one number of calculations, so that long problems, which fail more often, are not rare."""
VAIN_DRAWS = 5_000
"""Draws in a row without a new problem after which there are taken to be no more."""


@dataclass(frozen=True)
class Problem:
    """A question and the calculations that answer it, in order."""

    question: str
    calculations: tuple[str, ...]
    result: int

    @property
    def row(self) -> dict[str, str]:
        return {"question": self.question, "answer": "\n".join([*self.calculations, f"#### {self.result}"])}


def draw(rng: random.Random, num: int, max_number: int) -> Problem | None:
    """A problem of ``num`` calculations; None if the draw came to no whole number, or too long a text."""
    item, in_boxes = rng.choice(ITEMS), rng.random() < 0.3
    value, calculations, last = rng.randint(2, min(9, max_number) if in_boxes else max_number), [], "+"
    told = f"{rng.choice(NAMES)} has {value} {item}"
    if in_boxes:
        each, last = rng.randint(2, max_number), "*"
        told = told.replace(item, f"boxes of {each} {item}")
        calculations, value = [f"{value}*{each}={value * each}"], value * each
    while len(calculations) < num:
        last = rng.choice("+-/" if len(calculations) == num - 1 else "+-")
        step = _step(rng, last, value, max_number)
        if step is None:
            return None
        phrase, operand, result = step
        told += f" and {phrase}" if len(calculations) == num - 1 else f", {phrase}"
        calculations.append(f"{value}{last}{operand}={result}")
        value = result
    question = f"{told}. {ENDINGS[last]}"
    fits = len(question) < 70 and len("\n".join(calculations)) < 40 and value <= LARGEST
    return Problem(question, tuple(calculations), value) if fits else None


def _step(rng: random.Random, sign: str, value: int, max_number: int) -> tuple[str, int, int] | None:
    """Words, operand and result of one calculation on ``value``; None if that is not positive and whole."""
    if sign == "/":
        divisors = [n for n in range(2, min(value, max_number + 1)) if value % n == 0]
        operand = rng.choice(divisors) if divisors else 0
        return (rng.choice(SHARES).format(operand), operand, value // operand) if divisors else None
    operand = rng.randint(2, max_number)
    result = value + operand if sign == "+" else value - operand
    words = rng.choice(GAINS if sign == "+" else LOSSES).format(operand)
    return (words, operand, result) if result > 0 else None


def generate(num: int, num_test: int, steps: int, max_number: int, seed: int) -> dict[str, list[Problem]]:
    """Different problems for the files ``train`` and ``test``.

    Raises:
        ValueError: if that many are not to be found.
    """
    wanted, files = {"train": num, "test": num_test}, {"train": [], "test": []}
    rng, seen, vain = random.Random(seed), set(), 0
    while any(len(files[name]) < wanted[name] for name in files):
        num = rng.randint(1, steps)
        problem = next(filter(None, (draw(rng, num, max_number) for _ in range(TRIES))), None)
        # The same calculation always falls on the same side, whatever the words around it.
        side = problem and random.Random(f"{seed} {problem.calculations}").randrange(HELD_OUT)
        name = "test" if side == 0 else "train"
        if problem is None or problem.question in seen or len(files[name]) == wanted[name]:
            vain += 1
            if vain > VAIN_DRAWS:
                found = ", ".join(f"{len(files[name])} of {wanted[name]} for {name}" for name in files)
                raise ValueError(f"only {found} found; ask for fewer, more --steps or a larger --max-number")
            continue
        seen.add(problem.question)
        files[name].append(problem)
        vain = 0
    return files


def lines(problems: list[Problem]) -> Iterator[str]:
    return (json.dumps(problem.row) + "\n" for problem in problems)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where train.jsonl and test.jsonl go")
    parser.add_argument("--num", type=int, default=20_000, help="training problems")
    parser.add_argument("--num-test", type=int, default=500, help="test problems")
    parser.add_argument("--steps", type=int, default=2, choices=(1, 2, 3), help="calculations at most")
    parser.add_argument("--max-number", type=int, default=20, help="largest number in a question, 2 to 99")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not 2 <= given.max_number <= 99:
        parser.error(f"--max-number: {given.max_number}; give 2 to 99")
    try:
        files = generate(given.num, given.num_test, given.steps, given.max_number, given.seed)
    except ValueError as error:
        parser.error(str(error))
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, problems in files.items():
        (given.folder / f"{name}.jsonl").write_text("".join(lines(problems)), encoding="utf-8")
        print(f"{given.folder / name}.jsonl: {len(problems)} problems")


if __name__ == "__main__":
    main()
