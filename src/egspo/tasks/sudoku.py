"""4x4 Sudoku, the planning benchmark of d1 (arXiv 2504.12216), judged by the rules of the puzzle.

A published test file may hold puzzles with several solutions; any of them is right. Generated puzzles have
one.

What a split cannot exclude: only 288 solved grids exist. Generated splits share no solution, and training and
validation avoid the solutions of a test file given as ``data``. But the 288 grids are two up to symmetry and
relabelling, so a test grid always has relatives in training; and a file given as ``train_data`` keeps rows
whose solution also solves some test puzzle (only the puzzles themselves are dropped).
"""

import itertools
import re
from collections.abc import Hashable, Mapping
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from egspo import answers
from egspo.paper import sudoku as paper
from egspo.paper.prompts import SUDOKU as PAPER
from egspo.records import Row
from egspo.tasks import base
from egspo.tasks.base import SPLITS, GeneratedConfig, Part, Problem
from egspo.types import Grade

CELLS = 16
NUM_GRIDS = 288
MOST_BLANKS = 12
INSTRUCTION = """\
Solve this 4x4 Sudoku. Fill every empty cell with a digit from 1 to 4, so that each row, each column and \
each of the four 2x2 boxes holds 1, 2, 3 and 4 exactly once. The given digits must stay as they are.

The puzzle, read row by row, with 0 for an empty cell:
{puzzle}

Work it out, then give the completed grid as 16 digits, read row by row, between these tags:
<answer>
the 16 digits
</answer>"""
_LAYOUT = re.compile(r"(?:[\s0-9,;:|&+\-_=\[\](){}\"'`*/\u2500-\u257f]|\\hline|\\\\)*")


class Config(GeneratedConfig):
    """Settings of generated puzzles."""

    blanks: tuple[int, int] = Field((6, 10), description="fewest and most empty cells of a generated puzzle")
    train_blanks: tuple[int, int] | None = Field(
        None, description="the same for the train split; default: blanks"
    )

    @field_validator("blanks", "train_blanks")
    @classmethod
    def _range(cls, blanks: tuple[int, int] | None) -> tuple[int, int] | None:
        if blanks is not None and not 1 <= blanks[0] <= blanks[1] <= MOST_BLANKS:
            raise ValueError(
                f"{blanks[0]} to {blanks[1]} empty cells; give the fewest, then the most, from 1 to "
                f"{MOST_BLANKS} (fewer than 4 clues never have one solution)"
            )
        return blanks


class Task(base.GeneratedTask):
    """Complete a 4x4 Sudoku (d1, arXiv 2504.12216)."""

    name = "sudoku"
    description = "4x4 Sudoku: fill 6 to 10 empty cells; generated, or read from a file"
    version = "1"
    source = "d1, arXiv 2504.12216; rules of the puzzle"
    parts: ClassVar[Mapping[str, Part]] = {
        "cells": Part("share of the empty cells that are right, at best over the puzzle's solutions", 1.0),
        "solved": Part("1 for a solution of the puzzle that keeps its clues", 0.0),
        "format": Part("1 for exactly one grid of 16 digits 1-4", 0.0, "format"),
    }
    grade_fields = ("puzzle",)
    Config = Config
    prompts = ("instruct", "compact", "paper")
    paper_count = "cells"
    told_apart_by = "the solutions of "

    def apart(self, split: str) -> list[set[Hashable]]:
        """Of each puzzle, all its solutions."""
        return [set(_texts(solutions(prompt.fields["puzzle"]))) for prompt in self.load(split)]

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        puzzle = str(fields.get("puzzle"))
        known = solutions(puzzle)
        num_blanks = puzzle.count("0")
        text = answers.answer_or_text(completion, bare=self.config.prompt == "compact")
        grid, reason = (None, "no closed answer") if text is None else read_grid(text)
        if grid is None:
            parts = dict.fromkeys(self.parts, 0.0)
            return Grade(False, parts, text, reason, {"cells": (0, num_blanks)})
        blank = _digits(puzzle) == 0
        right = int((known == _digits(grid))[:, blank].sum(1).max())
        fault = _fault(puzzle, grid)
        parts = {
            "cells": right / num_blanks,
            "solved": float(fault is None),
            "format": float(set(grid) <= set("1234")),
        }
        counts = {"cells": (right, num_blanks)}
        return Grade(fault is None, parts, grid, fault or "solves the puzzle", counts)

    def paper_grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        puzzle, solution = str(fields.get("puzzle")), fields.get("solution")
        known = _texts(solutions(puzzle))
        if solution is None and len(known) > 1:
            raise ValueError(
                f"solution: missing, and the puzzle {puzzle!r} has {len(known)}; give the one of the data "
                "set, with which the published grader compares"
            )
        if solution is not None and not (isinstance(solution, str) and len(solution) == CELLS):
            raise ValueError(f"solution: {solution!r}; write {CELLS} characters")
        grid = paper.read_grid(completion)
        right, blanks = paper.right_cells(grid, puzzle, solution or known[0])
        parts = {"cells": right / blanks, "solved": float(right == blanks), "format": 0.0}
        return Grade(
            right == blanks,
            parts,
            grid or None,
            f"{right} of {blanks} cells right",
            {"cells": (right, blanks)},
        )

    def _generate(self, split: str) -> list[Problem]:
        """Different puzzles with one solution each.

        The number of blanks is uniform over its range (shares differ by at most one puzzle); given that
        number, every puzzle that has one solution, among the grids of the split, is equally likely.
        """
        chosen, num = self._grids_of(split), getattr(self.config, f"num_{split}")
        low, high = (self.config.train_blanks if split == "train" else None) or self.config.blanks
        kinds = range(low, high + 1)
        possible = [np.flatnonzero(_unique(count)[chosen]) for count in kinds]
        most = min(len(indices) * len(kinds) + i for i, indices in enumerate(possible))
        if num > most:
            raise ValueError(
                f"task.num_{split}: {num} puzzles with {low} to {high} blanks, as many of each, but only "
                f"{most} exist in this split; lower task.num_{split} to that, or change the range of blanks"
            )
        rng = np.random.default_rng([self.config.seed, SPLITS.index(split)])
        drawn = []
        for i, (count, indices) in enumerate(zip(kinds, possible, strict=True)):
            masks, wanted = _masks(count), num // len(kinds) + (i < num % len(kinds))
            picked = indices[rng.choice(len(indices), wanted, replace=False)]
            drawn.append(np.stack([chosen[picked // len(masks)], masks[picked % len(masks)]], 1))
        number, mask = rng.permutation(np.concatenate(drawn)).T
        solved = grids()[number]
        puzzles = solved * ((mask[:, None] >> np.arange(CELLS)) & 1 == 0)
        return [_problem(*pair) for pair in zip(_texts(puzzles), _texts(solved), strict=True)]

    def _parse(self, row: Row, split: str) -> Problem:
        puzzle, solution = str(row.get("puzzle")), row.get("solution") or None
        known = _texts(solutions(puzzle))
        if solution is not None and solution not in known:
            raise ValueError(
                f"solution: {solution!r} does not solve the puzzle {puzzle!r}; correct or omit it"
            )
        return _problem(puzzle, solution or known[0])

    def _key(self, fields: Mapping[str, Any]) -> str:
        return fields["puzzle"]

    def _question(self, fields: Mapping[str, Any]) -> str:
        if self.config.prompt == "paper":
            return f"{PAPER}{fields['puzzle']}\n"
        return fields["puzzle"] if self.config.prompt == "compact" else INSTRUCTION.format(**fields)

    def _grids_of(self, split: str) -> np.ndarray:
        """Which of the 288 grids may solve puzzles of a split: 48 for test, the rest 4 to 1."""
        order = np.random.default_rng([self.config.seed, len(SPLITS)]).permutation(NUM_GRIDS)
        test = order[: NUM_GRIDS // 6]
        if self.config.data is not None:
            used = set().union(*self.apart("test"))
            test = np.array([i for i, grid in enumerate(_texts(grids())) if grid in used])
        rest = order[~np.isin(order, test)]
        if len(rest) < 5:
            raise ValueError(
                f"task.data: the puzzles of {self.config.data} leave {len(rest)} of the {NUM_GRIDS} solved "
                "grids for training and validation; give a file with fewer solutions"
            )
        num_validation = len(rest) // 5
        return {"test": test, "validation": rest[:num_validation], "train": rest[num_validation:]}[split]


def read_grid(text: str) -> tuple[str | None, str]:
    """The one grid in a text as 16 digits, or None and why.

    Words may stand around a grid; between its digits only layout may: blanks, line ends, commas, bars,
    borders, brackets and the like. Digits of any script count, so that a text with two grids, or with a grid
    and a step number, holds none.
    """
    at = [i for i, character in enumerate(text) if character.isdigit()]
    if len(at) != CELLS:
        return None, f"{len(at)} digits, not {CELLS}"
    if not _LAYOUT.fullmatch(text, at[0], at[-1] + 1):
        return None, "something other than layout between the digits"
    return "".join(text[i] for i in at), ""


@cache
def grids() -> np.ndarray:
    """All 288 solved grids, uint8 [288, 16], in lexicographic order; read-only."""
    rows = np.array(list(itertools.permutations((1, 2, 3, 4))), np.uint8)
    four = np.indices((len(rows),) * 4).reshape(4, -1).T
    candidates = rows[four].reshape(-1, CELLS)
    seen = np.bitwise_or.reduce((1 << candidates)[:, np.array(list(_units().values()))], axis=2)
    found = candidates[(seen == 0b11110).all(1)]
    found.setflags(write=False)
    return found


@lru_cache(maxsize=65_536)
def solutions(puzzle: str) -> np.ndarray:
    """All solutions of a puzzle, uint8 [solutions, 16].

    Raises:
        ValueError: if the puzzle is not 16 characters 0-4, has no empty cell or no solution.
    """
    if not re.fullmatch("[0-4]{16}", puzzle):
        raise ValueError(
            f"puzzle: {puzzle!r}; write 16 characters, 0 for an empty cell, else 1-4 (as text: spreadsheets "
            "drop leading zeros)"
        )
    if "0" not in puzzle:
        raise ValueError(f"puzzle: {puzzle!r} has no empty cell; write 0 for an empty cell")
    clues = _digits(puzzle)
    found = grids()[((grids() == clues) | (clues == 0)).all(1)]
    if not len(found):
        raise ValueError(f"puzzle: {puzzle!r} has no solution under the rules; correct its clues")
    return found


@cache
def _units() -> dict[str, list[int]]:
    """Cells of each row, column and box."""
    cells = np.arange(CELLS).reshape(4, 4)
    boxes = cells.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    kinds = {"row": cells, "column": cells.T, "box": boxes}
    return {f"{kind} {i + 1}": units[i].tolist() for kind, units in kinds.items() for i in range(4)}


def _digits(text: str) -> np.ndarray:
    return np.array([int(character) for character in text], np.uint8)


def _fault(puzzle: str, grid: str) -> str | None:
    """The first rule that a grid breaks; None for a solution."""
    for i, (clue, digit) in enumerate(zip(puzzle, grid, strict=True)):
        if digit not in "1234":
            return f"{digit!r} is not one of the digits 1-4"
        if clue not in ("0", digit):
            return f"changes the clue in row {i // 4 + 1}, column {i % 4 + 1} from {clue} to {digit}"
    for name, unit in _units().items():
        if len({grid[i] for i in unit}) < 4:
            return f"{name} repeats a digit"
    return None


def _problem(puzzle: str, solution: str) -> Problem:
    return {"puzzle": puzzle, "solution": solution}, solution


def _texts(cells: np.ndarray) -> list[str]:
    text = (cells.astype(np.uint8) + ord("0")).tobytes().decode()
    return [text[i : i + CELLS] for i in range(0, len(text), CELLS)]


@cache
def _masks(count: int) -> np.ndarray:
    """Bit masks of 16 cells with ``count`` blanks; bit i is cell i."""
    masks = np.arange(1 << CELLS)
    return masks[((masks[:, None] >> np.arange(CELLS)) & 1).sum(1) == count].astype(np.uint16)


@cache
def _unavoidable() -> list[np.ndarray]:
    """For each grid, the minimal sets of cells in which another grid differs from it, as bit masks.

    A puzzle has one solution if and only if it blanks none of these sets completely.
    """
    differs = (grids()[:, None] != grids()[None]) @ (1 << np.arange(CELLS))
    minimal = []
    for own in differs:
        own = own[own > 0]
        holds = (own[:, None] & own[None]) == own[None]
        minimal.append(own[holds.sum(1) == 1].astype(np.uint16))
    return minimal


@cache
def _unique(count: int) -> np.ndarray:
    """Whether each grid with each mask blanked has one solution, bool [288, masks]."""
    masks = _masks(count)
    unique = np.ones((NUM_GRIDS, len(masks)), bool)
    for row, sets in zip(unique, _unavoidable(), strict=True):
        for cells in sets:
            row &= (masks & cells) != cells
    return unique
