"""4x4 Sudoku: the grids, the generator, files, and a grader that goes by the rules of the puzzle."""

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from egspo.tasks import sudoku
from egspo.tasks.base import SPLITS
from egspo.tasks.sudoku import Config, Task

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "sudoku"
SOLVED = "1234341221434321"
# Blank: row 1 column 3 (a 3) and row 3 column 1 (a 2).
PUZZLE = "1204341201434321"
# The 1 and 2 of rows 1 and 3 in columns 1 and 2 may be swapped: exactly two solutions.
TWO_WAYS = "0034341200434321"
OTHER = "2134341212434321"
WIDE = "".join(chr(ord("\N{FULLWIDTH DIGIT ZERO}") + int(digit)) for digit in SOLVED)


def make(**settings) -> Task:
    return Task(Config(name="sudoku", **settings))


def public(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"public file {name} is not here")
    return DATA / name


def solutions_by_hand(puzzle: str) -> list[str]:
    """Depth-first search, cell by cell."""
    if "0" not in puzzle:
        return [puzzle]
    i = puzzle.index("0")
    row, column = divmod(i, 4)
    peers = {j for j in range(16) if j // 4 == row or j % 4 == column}
    peers |= {j for j in range(16) if j // 8 == row // 2 and j % 4 // 2 == column // 2}
    free = [digit for digit in "1234" if digit not in {puzzle[j] for j in peers}]
    return list(
        itertools.chain.from_iterable(solutions_by_hand(puzzle[:i] + d + puzzle[i + 1 :]) for d in free)
    )


def test_there_are_288_grids():
    found = ["".join(map(str, grid)) for grid in sudoku.grids()]
    assert len(set(found)) == 288
    assert sorted(solutions_by_hand("0" * 16)) == found


def test_solver_finds_what_a_search_finds():
    for prompt in make(num_test=100, blanks=(4, 12)).load("test"):
        puzzle = prompt.fields["puzzle"]
        # Four more blanks than the puzzle has, so that some have several solutions.
        looser = "0000" + puzzle[4:]
        found = ["".join(map(str, grid)) for grid in sudoku.solutions(looser)]
        assert found == sorted(solutions_by_hand(looser))


def test_generated_puzzles_have_one_solution():
    for prompt in make(num_test=200, blanks=(1, 12)).load("test"):
        assert solutions_by_hand(prompt.fields["puzzle"]) == [prompt.fields["solution"]]


def test_every_puzzle_with_one_solution_can_be_drawn():
    # There are 25,728 puzzles with four clues and one solution (a published count for 4x4 Sudoku).
    assert sudoku._unique(12).sum() == 25_728
    assert not sudoku._unique(13).any()


def test_number_of_blanks_is_uniform():
    counts = Counter(prompt.fields["puzzle"].count("0") for prompt in make(num_test=502).load("test"))
    # 502 over the five numbers 6 .. 10: 100 each and one more for the first two.
    assert counts == {6: 101, 7: 101, 8: 100, 9: 100, 10: 100}


def test_train_blanks_are_those_of_the_train_split_only():
    task = make(blanks=(8, 8), train_blanks=(2, 3), num_train=50, num_validation=50, num_test=50)
    seen = {split: {p.fields["puzzle"].count("0") for p in task.load(split)} for split in SPLITS}
    assert seen == {"train": {2, 3}, "validation": {8}, "test": {8}}


def test_no_puzzle_comes_twice_and_no_solution_is_in_two_splits():
    task = make()
    splits = {split: task.load(split) for split in SPLITS}
    assert {split: len(prompts) for split, prompts in splits.items()} == {
        "train": 20_000,
        "validation": 500,
        "test": 1_000,
    }
    for prompts in splits.values():
        assert len({prompt.fields["puzzle"] for prompt in prompts}) == len(prompts)
    solutions = {
        split: {prompt.fields["solution"] for prompt in prompts} for split, prompts in splits.items()
    }
    # 288 grids: a sixth for test, a fifth of the rest for validation.
    assert {split: len(grids) for split, grids in solutions.items()} == {
        "train": 192,
        "validation": 48,
        "test": 48,
    }
    assert len(set.union(*solutions.values())) == 288


def test_test_split_does_not_depend_on_the_others_and_the_seed_matters():
    test = make(num_test=50).load("test")
    assert test == make(num_test=50, num_train=7, train_blanks=(1, 1)).load("test")
    assert test != make(num_test=50, seed=1).load("test")


def test_more_puzzles_than_exist_are_refused():
    # One blank: 192 training grids x 16 cells = 3072 puzzles.
    assert len(make(blanks=(1, 1), num_train=3_072).load("train")) == 3_072
    with pytest.raises(ValueError, match=r"task.num_train: 3073 .* only 3072 exist .* lower task.num_train"):
        make(blanks=(1, 1), num_train=3_073).load("train")
    # Equal shares: one blank has 3072 puzzles, two have 192 x 120, so 3072 of each and one more would need a
    # 3073rd with one blank (the lower numbers get the odd ones).
    assert len(make(blanks=(1, 2), num_train=6_144).load("train")) == 6_144
    with pytest.raises(ValueError, match=r"task.num_train: 6145 .* only 6144 exist"):
        make(blanks=(1, 2), num_train=6_145).load("train")


@pytest.mark.parametrize("blanks", [(0, 4), (5, 13), (7, 6)])
@pytest.mark.parametrize("field", ["blanks", "train_blanks"])
def test_impossible_blanks_are_refused(field, blanks):
    with pytest.raises(ValueError, match=rf"{field}\n.*{blanks[0]} to {blanks[1]} empty cells; give"):
        Config(name="sudoku", **{field: blanks})


@pytest.mark.parametrize("settings", [{"num_train": 0}, {"seed": -1}, {"train_data": "nowhere.csv"}])
def test_other_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Config(name="sudoku", **settings)


@pytest.mark.parametrize(
    "text",
    [
        SOLVED,
        "1234\n3412\n2143\n4321",
        "1 2 3 4\r\n3 4 1 2\r\n2 1 4 3\r\n4 3 2 1\r\n",
        "[[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]",
        "+----+----+\n| 12 | 34 |\n| 34 | 12 |\n+----+----+\n| 21 | 43 |\n| 43 | 21 |\n+----+----+",
        "┌──┬──┐\n│12│34│\n│34│12│\n├──┼──┤\n│21│43│\n│43│21│\n└──┴──┘",
        "```\n1,2,3,4;3,4,1,2;2,1,4,3;4,3,2,1\n```",
        r"\begin{array}{cc|cc} 1 & 2 & 34 \\ 3 & 4 & 12 \\ \hline 2 & 1 & 43 \\ 4 & 3 & 21 \end{array}",
        "The completed grid is **1234 3412 2143 4321**.",
    ],
)
@pytest.mark.parametrize(
    "wrap", ["{}", "First 9 tries.<answer>\n{}\n</answer>", r"So \boxed{{{}}}<|eot_id|>7"]
)
def test_a_solution_counts_in_any_layout(text, wrap):
    grade = make().grade(wrap.format(text), {"puzzle": PUZZLE})
    assert grade.correct and grade.extracted == SOLVED
    assert grade.parts == {"cells": 1.0, "solved": 1.0, "format": 1.0}
    assert grade.counts == {"cells": (2, 2)}


@pytest.mark.parametrize(
    ("text", "right", "form", "reason"),
    [
        # A 1 in place of the 3 of row 1: one of the two blanks is right.
        ("1214341221434321", 1, 1, "row 1 repeats a digit"),
        # Both blanks are right, but the clue in the corner is overwritten.
        ("2234341221434321", 2, 1, "changes the clue in row 1, column 1 from 1 to 2"),
        # A valid grid that solves another puzzle: its blanks hold 4 and 1.
        ("2143432112343412", 0, 1, "changes the clue in row 1, column 1 from 1 to 2"),
        # The puzzle itself, and digits that do not exist: no grid of 1-4, cells are still compared.
        (PUZZLE, 0, 0, "'0' is not one of the digits 1-4"),
        ("1274341221434321", 1, 0, "'7' is not one of the digits 1-4"),
        (SOLVED[:15], 0, 0, "15 digits, not 16"),
        (SOLVED + "1", 0, 0, "17 digits, not 16"),
        (SOLVED + "\n" + SOLVED, 0, 0, "32 digits, not 16"),
        ("Row 1: 1234 Row 2: 3412 Row 3: 2143 Row 4: 4321", 0, 0, "20 digits, not 16"),
        ("1234 3412 and 2143 4321", 0, 0, "something other than layout between the digits"),
        ("1.234341221434321", 0, 0, "something other than layout between the digits"),
        (WIDE, 0, 0, "something other than layout between the digits"),
        (SOLVED + "²", 0, 0, "17 digits, not 16"),
        ("", 0, 0, "0 digits, not 16"),
        ("<answer>" + SOLVED, 0, 0, "no closed answer"),
    ],
)
def test_near_misses_are_refused(text, right, form, reason):
    grade = make().grade(text, {"puzzle": PUZZLE, "solution": SOLVED})
    assert not grade.correct and grade.reason == reason
    assert grade.parts == {"cells": right / 2, "solved": 0.0, "format": form}
    assert grade.counts == {"cells": (right, 2)}


def test_any_solution_of_a_puzzle_with_several_is_right():
    fields = {"puzzle": TWO_WAYS, "solution": SOLVED}
    assert make().grade(SOLVED, fields).correct and make().grade(OTHER, fields).correct
    # Row 1 as in the one, row 3 as in the other: two of the four blanks agree with either.
    mixed = SOLVED[:8] + OTHER[8:]
    assert make().grade(mixed, fields).counts == {"cells": (2, 4)}


@pytest.mark.parametrize(
    ("puzzle", "message"),
    [
        ("1104341201434321", "no solution under the rules"),
        (SOLVED, "has no empty cell"),
        ("204341201434321", "write 16 characters"),
        ("5204341201434321", "write 16 characters"),
        (None, "write 16 characters"),
    ],
)
def test_broken_puzzles_are_data_errors(puzzle, message):
    with pytest.raises(ValueError, match=message):
        make().grade(SOLVED, {"puzzle": puzzle})


def test_prompts_and_solutions_of_both_styles(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text(f"Puzzle,Solution\n{PUZZLE},{SOLVED}\n")
    (compact,) = make(data=path, prompt="compact").load("test")
    assert compact.messages[0]["content"] == PUZZLE and compact.solution == SOLVED
    (worded,) = make(data=path).load("test")
    assert PUZZLE in worded.messages[0]["content"]
    assert worded.solution == f"<answer>\n{SOLVED}\n</answer>" and worded.id == "one.csv:2"


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.jsonl", "p.jsonl.gz"])
@pytest.mark.parametrize("with_solution", [True, False])
def test_files_in_every_format(tmp_path, name, with_solution):
    rows = [(TWO_WAYS, OTHER), (PUZZLE, SOLVED)]
    if "csv" in name:
        lines = (
            ["Puzzle,Solution", *map(",".join, rows)] if with_solution else ["Puzzle", *(p for p, _ in rows)]
        )
    else:
        keys = ("puzzle", "solution") if with_solution else ("puzzle",)
        lines = [json.dumps(dict(zip(keys, row, strict=False))) for row in rows]
    text = "\n".join(lines) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    prompts = make(data=path, prompt="compact").load("test")
    assert [prompt.fields["puzzle"] for prompt in prompts] == [TWO_WAYS, PUZZLE]
    # Without a column of solutions the first in order is taken.
    assert [prompt.solution for prompt in prompts] == [OTHER if with_solution else SOLVED, SOLVED]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", f"Puzzle,Solution\n{PUZZLE},{SOLVED}\n204,1\n", "p.csv:3: puzzle: '204'; write 16"),
        (
            "p.csv",
            f"Puzzle,Solution\n{PUZZLE},{OTHER}\n",
            f"task.data: .*:2: solution: '{OTHER}' does not solve .*; correct",
        ),
        ("p.csv", f"a,b\n{PUZZLE},{SOLVED}\n", ":2: puzzle: 'None'; write 16"),
        ("p.csv", "Puzzle,Solution\n", "holds no rows; give"),
        (
            "p.jsonl",
            f'{{"puzzle": "{PUZZLE}"}}\n\n{{"puzzle"\n',
            "p.jsonl:3: not JSON .*; write one JSON object",
        ),
        ("p.jsonl", "[1]\n", ":1: not a JSON object; write"),
        ("p.jsonl", '{"puzzle": 1204341201434321}\n{"puzzle": [1]}\n', ":2: puzzle: .*; write 16"),
        ("p.txt", PUZZLE, "unknown kind of file; give"),
        ("p.csv.gz", "Puzzle\n", "not a readable csv file"),
    ],
)
def test_broken_files_are_reported_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        make(data=tmp_path / name).load("test")


def test_training_file_gives_no_puzzle_of_test_or_validation(tmp_path):
    test = make(num_test=50).load("test")
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["puzzle", PUZZLE, *(prompt.fields["puzzle"] for prompt in test)]))
    task = make(train_data=path, num_test=50)
    assert [prompt.fields["puzzle"] for prompt in task.load("train")] == [PUZZLE]
    path.write_text("\n".join(["puzzle", *(prompt.fields["puzzle"] for prompt in test)]))
    with pytest.raises(ValueError, match=r"task.train_data: .* no problem that is not in validation or test"):
        make(train_data=path, num_test=50).load("train")


def test_a_test_file_that_needs_every_grid_leaves_none_to_train_on(tmp_path):
    (tmp_path / "all.csv").write_text(f"puzzle\n{'0' * 16}\n")
    with pytest.raises(ValueError, match="leave 0 of the 288 solved grids"):
        make(data=tmp_path / "all.csv").load("train")


@pytest.mark.parametrize(
    ("name", "num_rows", "num_ambiguous"),
    [
        # Row counts and puzzles with several solutions, from the description of the data.
        ("4x4_test_sudoku.csv", 500, 124),
        ("spg_test_sudoku_split_new.csv", 256, 0),
        ("train_9empty_unique.jsonl.gz", 19_994, 0),
    ],
)
def test_public_files(name, num_rows, num_ambiguous):
    task = make(data=public(name))
    prompts = task.load("test")
    assert len(prompts) == num_rows and task.validate("test") == []
    assert sum(len(sudoku.solutions(prompt.fields["puzzle"])) > 1 for prompt in prompts) == num_ambiguous


@pytest.mark.parametrize("name", ["4x4_test_sudoku.csv", "spg_test_sudoku_split_new.csv"])
def test_no_solution_of_a_public_test_file_is_trained_on(name):
    task = make(data=public(name), num_train=2_000)
    used = np.concatenate([sudoku.solutions(prompt.fields["puzzle"]) for prompt in task.load("test")])
    used = {"".join(map(str, grid)) for grid in used}
    for split in ("train", "validation"):
        assert not used & {prompt.fields["solution"] for prompt in task.load(split)}
