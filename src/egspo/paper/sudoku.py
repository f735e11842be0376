"""d1's rules for 4x4 Sudoku.

What is taken for the grid is the first of: digits in a code fence behind ``<answer>``; all that follows
``<answer>`` up to its end; all that follows ``</answer>``; 16 digits before ``</answer>``; 16 digits by
themselves. Blanks dropped, it is cut or filled with zeros to 16 characters, and each empty cell of the
puzzle is compared with the stored solution.
"""

import re
from collections.abc import Iterator

CELLS = 16

_FENCE = re.compile(r"```(?=([\d\s]+)```)")
_END = re.compile(r"<\|eot_id\|>|<\|endoftext\|>|</answer>")
_END_TOKEN = re.compile(r"<\|eot_id\|>|<\|endoftext\|>")
_CLOSED_GRID = re.compile(r"(\d{16})\s*</answer>")
_GRID = re.compile(r"\b(\d{16})\b")


def read_grid(text: str) -> str:
    """Sixteen characters, or none at all."""
    found = next((candidate for candidate in _candidates(text) if candidate.strip()), "")
    found = re.sub(r"\s", "", found)
    return found[:CELLS].ljust(CELLS, "0") if found else ""


def right_cells(grid: str, puzzle: str, solution: str) -> tuple[int, int]:
    """How many of the empty cells are as in the solution, and how many there are."""
    empty = [i for i, clue in enumerate(puzzle) if clue == "0"]
    return sum(grid[i] == solution[i] for i in empty) if grid else 0, len(empty)


def _candidates(text: str) -> Iterator[str]:
    _, opened, behind = text.partition("<answer>")
    if opened:
        fence = _FENCE.search(behind)
        yield fence[1] if fence else ""
        end = _END.search(behind)
        yield behind[: end.start()] if end else ""
    _, closed, behind = text.partition("</answer>")
    yield _END_TOKEN.split(behind.lstrip(), maxsplit=1)[0] if closed else ""
    for pattern in (_CLOSED_GRID, _GRID):
        match = pattern.search(text)
        yield match[1] if match else ""
