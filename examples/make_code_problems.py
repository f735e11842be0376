"""One-line Python functions as a code task in miniature, small enough for a model trained from scratch.

    python examples/make_code_problems.py data/functions --num 1500

writes ``train.jsonl`` and ``test.jsonl`` with ``prompt`` ("Write f(x): x times 2 plus 3."), ``entry_point``
("f"), ``test`` (assertions that call it, a line each) and ``solution`` ("def f(x): return x*2+3"). Solutions
have fewer than 40 characters, and no two problems have the same one, in one file or both. Tests are such that
neither a constant nor the argument itself passes.
"""

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ("banana", "letter", "apple", "kayak", "window", "python", "summer", "orange")
ENDS = "abdefhklmnoprsty"
NUM_TESTS = 4


@dataclass(frozen=True)
class Family:
    """Problems that differ in parameters; ``{a}`` and ``{b}`` stand for these in words and code.

    ``kinds`` has a letter for each: "n" is a number, "l" a letter. ``answer(x, a, b)`` is what the function
    has to return, and ``inputs(rng, a)`` draws an argument.
    """

    words: str
    code: str
    kinds: str
    answer: Callable[..., Any]
    inputs: Callable[[random.Random, Any], Any]


def near(rng: random.Random, a: Any) -> int:
    """A number about as large as the parameter, so that comparisons come out both ways."""
    return rng.randint(0, 2 * a + 5)


def numbers(rng: random.Random, a: Any) -> list[int]:
    """A list of seven numbers, the parameter among them half of the time."""
    others = [rng.randint(0, 2 * a + 5) for _ in range(6)]
    return rng.sample([*others, rng.choice((a, a + 1))], 7)


def word(rng: random.Random, a: Any) -> str:
    """A word, with the parameter in it where that is a letter."""
    drawn = rng.choice(WORDS)
    return drawn if isinstance(a, int) or a in drawn or rng.random() < 0.3 else a + drawn + a


def above(x: list[int], a: int) -> list[int]:
    return [i for i in x if i > a]


def below(x: list[int], a: int) -> list[int]:
    return [i for i in x if i < a]


FAMILIES = (
    Family("x times {a} plus {b}", "x*{a}+{b}", "nn", lambda x, a, b: x * a + b, near),
    Family("x times {a} minus {b}", "x*{a}-{b}", "nn", lambda x, a, b: x * a - b, near),
    Family("x squared plus {a}", "x*x+{a}", "n", lambda x, a: x * x + a, near),
    Family("x squared minus {a}", "x*x-{a}", "n", lambda x, a: x * x - a, near),
    Family("{a} minus x", "{a}-x", "n", lambda x, a: a - x, near),
    Family("the remainder of x by {a}", "x%{a}", "n", lambda x, a: x % a, near),
    Family("x divided by {a}, rounded down", "x//{a}", "n", lambda x, a: x // a, near),
    Family("the distance of x from {a}", "abs(x-{a})", "n", lambda x, a: abs(x - a), near),
    Family("the larger of x and {a}", "max(x,{a})", "n", max, near),
    Family("the smaller of x and {a}", "min(x,{a})", "n", min, near),
    Family("whether x is above {a}", "x>{a}", "n", lambda x, a: x > a, near),
    Family("whether x is a multiple of {a}", "x%{a}==0", "n", lambda x, a: x % a == 0, near),
    Family("the sum of list x plus {a}", "sum(x)+{a}", "n", lambda x, a: sum(x) + a, numbers),
    Family("each item of x plus {a}", "[i+{a} for i in x]", "n", lambda x, a: [i + a for i in x], numbers),
    Family("each item of x times {a}", "[i*{a} for i in x]", "n", lambda x, a: [i * a for i in x], numbers),
    Family("items of x above {a}", "[i for i in x if i>{a}]", "n", above, numbers),
    Family("items of x below {a}", "[i for i in x if i<{a}]", "n", below, numbers),
    Family("how often {a} is in list x", "x.count({a})", "n", lambda x, a: x.count(a), numbers),
    Family("whether {a} is in list x", "{a} in x", "n", lambda x, a: a in x, numbers),
    Family("list x with {a} at the end", "x+[{a}]", "n", lambda x, a: [*x, a], numbers),
    Family("text x {a} times", "x*{a}", "n", lambda x, a: x * a, word),
    Family("text x with {a} at the end", "x+'{a}'", "l", lambda x, a: x + a, word),
    Family("text x with {a} in front", "'{a}'+x", "l", lambda x, a: a + x, word),
    Family("how often {a} is in text x", "x.count('{a}')", "l", lambda x, a: x.count(a), word),
    Family("whether text x starts with {a}", "x[0]=='{a}'", "l", lambda x, a: x[0] == a, word),
    Family("text x with {b} for {a}", "x.replace('{a}','{b}')", "ll", lambda x, a, b: x.replace(a, b), word),
)


def problems(max_number: int, seed: int) -> Iterator[dict[str, str]]:
    """Every problem there is, family by family."""
    choices = {"n": range(2, max_number + 1), "l": ENDS}
    for family in FAMILIES:
        for chosen in itertools.product(*(choices[kind] for kind in family.kinds)):
            if len(set(chosen)) == len(chosen) or family.kinds == "nn":
                yield _problem(family, chosen, random.Random(f"{seed} {family.words} {chosen}"))


def _problem(family: Family, chosen: tuple, rng: random.Random) -> dict[str, str]:
    named = dict(zip("ab", chosen, strict=False))
    pairs: list[tuple[Any, Any]] = []
    while all(x == y for x, y in pairs) or all(y == pairs[0][1] for _, y in pairs):
        arguments = [family.inputs(rng, chosen[0]) for _ in range(NUM_TESTS)]
        pairs = [(x, family.answer(x, *chosen)) for x in arguments]
    tests = [f"assert f({x!r}) == {y!r}" for x, y in pairs]
    return {
        "prompt": f"Write f(x): {family.words.format(**named)}.",
        "entry_point": "f",
        "test": "\n".join(tests),
        "solution": f"def f(x): return {family.code.format(**named)}",
    }


def generate(num: int, num_test: int, max_number: int, seed: int) -> dict[str, list[dict[str, str]]]:
    """Different problems for the files ``train`` and ``test``.

    Raises:
        ValueError: if there are not as many.
    """
    pool = list(problems(max_number, seed))
    if num + num_test > len(pool):
        raise ValueError(f"{num} and {num_test} problems, but there are {len(pool)}; raise --max-number")
    chosen = random.Random(seed).sample(pool, num + num_test)
    return {"train": chosen[num_test:], "test": chosen[:num_test]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where train.jsonl and test.jsonl go")
    parser.add_argument("--num", type=int, default=1_000, help="training problems")
    parser.add_argument("--num-test", type=int, default=200, help="test problems")
    parser.add_argument("--max-number", type=int, default=20, help="largest number in a function, 3 to 99")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not 3 <= given.max_number <= 99:
        parser.error(f"--max-number: {given.max_number}; give 3 to 99")
    try:
        files = generate(given.num, given.num_test, given.max_number, given.seed)
    except ValueError as error:
        parser.error(str(error))
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (given.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{given.folder / name}.jsonl: {len(rows)} problems")


if __name__ == "__main__":
    main()
