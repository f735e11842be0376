"""Files of generations: batches, broken lines among them, and what a published table would say."""

import json
import time
from pathlib import Path

import pytest

from egspo import grading, registry

GOLD = {"gsm8k": {"answer": "18"}, "math500": {"answer": "18"}}
SUDOKU = {"puzzle": "1204341201434321", "solution": "1234341221434321"}


def write(path: Path, lines) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def verdicts(name: str, path: Path, grader: str = "default") -> list[dict]:
    return list(grading.grade_file(registry.load_task(name), path, grader))


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
@pytest.mark.parametrize("grader", ["default", "paper"])
def test_broken_lines_leave_the_others_their_verdicts(tmp_path, monkeypatch, name, grader):
    monkeypatch.setattr(grading, "BATCH", 4)
    right, wrong = ({"generation": text, **GOLD[name]} for text in (r"\boxed{18}", r"\boxed{17}"))
    broken = {"generation": "18", "answer": [18]}
    lines = [right, wrong, "no json", right, "", broken, right, right, wrong, right]
    found = verdicts(name, write(tmp_path / "g.jsonl", lines), grader)
    assert [v["index"] for v in found] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [v["correct"] for v in found] == [True, False, False, True, False, True, True, False, True]
    assert [v["index"] for v in found if v["broken"]] == [2, 5]
    assert found[4]["reason"].startswith("line 6: answer: [18]; give")


def test_verdicts_come_batch_by_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "BATCH", 2)
    path = write(tmp_path / "g.jsonl", [{"generation": "18", "answer": 18}] * 5)
    task, sizes = registry.load_task("gsm8k"), []
    whole = task.grade_all
    task.grade_all = lambda texts, fields: (sizes.append(len(texts)), whole(texts, fields))[1]
    found = grading.grade_file(task, path)
    next(found)
    assert sizes == [2]
    assert len(list(found)) == 4 and sizes == [2, 2, 1]


def test_the_published_share_of_sudoku_is_that_of_cells(tmp_path):
    grid = SUDOKU["solution"]
    texts = [f"<answer>{grid}</answer>", f"<answer>{grid[:4]}</answer>", "none"]
    path = write(tmp_path / "g.jsonl", [{"generation": text, **SUDOKU} for text in texts])
    task, found = registry.load_task("sudoku"), verdicts("sudoku", path, "paper")
    # Two empty cells each: both right, one right (the rest filled with zeros), none.
    assert grading.accuracy(found, task.paper_count) == "accuracy 0.5000 (3/6 cells)"
    assert grading.accuracy(found, None) == "accuracy 0.3333 (1/3, 95% 0.061-0.792)"


def test_the_published_grader_of_sudoku_needs_the_stored_solution(tmp_path):
    task = registry.load_task("sudoku")
    assert task.paper_grade(f"<answer>{SUDOKU['solution']}</answer>", {"puzzle": SUDOKU["puzzle"]}).correct
    two = {"puzzle": "0034341200434321"}
    with pytest.raises(ValueError, match="solution: missing, and the puzzle '0034341200434321' has 2"):
        task.paper_grade("", two)
    # Of the two solutions only the stored one is right, which is one of the published faults.
    assert task.grade("<answer>2134341212434321</answer>", two).correct
    assert not task.paper_grade(
        "<answer>2134341212434321</answer>", two | {"solution": SUDOKU["solution"]}
    ).correct


def test_ten_thousand_numbers_are_graded_in_seconds(tmp_path):
    lines = [
        {"generation": f"So <answer>\\boxed{{\\${i:,}}}</answer>", "answer": f"#### {i}"}
        for i in range(10_000)
    ]
    path = write(tmp_path / "g.jsonl", lines)
    start = time.process_time()
    assert all(verdict["correct"] for verdict in verdicts("gsm8k", path))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_line_has_no_accuracy(tmp_path, text):
    path = tmp_path / "g.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^INPUT: .*g\.jsonl has no line"):
        verdicts("gsm8k", path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text('{"generation": "<answer>18</answer>", "answer": "18"}\n', encoding="utf-8-sig")
    assert [row["correct"] for row in verdicts("gsm8k", path)] == [True]
