"""MATH-500: files as published, extraction, reward parts, many at once, and the published grader."""

import itertools
import json
import time
from pathlib import Path

import pytest

from egspo import records
from egspo.sandbox import SandboxConfig
from egspo.tasks import math500
from egspo.tasks.math500 import Task

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "math"
GOLD = {"answer": r"\frac{1}{2}"}


def make(**settings) -> Task:
    return Task(Task.Config(name="math500", **settings))


def public(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"public file {name} is not here")
    return DATA / name


@pytest.mark.parametrize(
    ("name", "num"), [("math500_test.jsonl", 500), ("math_test_minus_math500_4500.jsonl.gz", 4500)]
)
def test_every_official_solution_and_answer_is_right(name, num):
    rows = [row for _, row in records.read_rows(public(name), "data")]
    assert len(rows) == num
    task = make()
    for write in ("{solution}", "<answer>{answer}</answer>", "So \\boxed{{{answer}}}."):
        grades = task.grade_all([write.format(**row) for row in rows], rows)
        wrong = [row["answer"] for row, grade in zip(rows, grades, strict=True) if not grade.correct]
        assert wrong == []


def test_hub_rows_without_an_answer_take_that_of_the_solution():
    rows = [row for _, row in records.read_rows(public("math500_test.jsonl"), "data")]
    for row in rows:
        fields, _ = make()._parse({k: v for k, v in row.items() if k != "answer"}, "train")
        assert fields["answer"] == row["answer"]
    assert math500.boxed_answer(r"so $x=\boxed 5.$") == "5"
    assert math500.boxed_answer(r"so \fbox{5}") == "5"
    assert math500.boxed_answer("so 5") is None
    assert make()._parse({"problem": "p", "solution": "so 5"}, "train") is None


def test_another_problems_answer_is_wrong():
    """Of the answers of 500 problems, each beside the next that is written differently."""
    rows = [row for _, row in records.read_rows(public("math500_test.jsonl"), "data")]
    pairs = [(a, b) for a, b in itertools.pairwise(rows) if a["answer"] != b["answer"]]
    texts = [f"\\boxed{{{other['answer']}}}" for _, other in pairs]
    grades = make().grade_all(texts, [row for row, _ in pairs])
    right = [
        (row["answer"], other["answer"])
        for (row, other), grade in zip(pairs, grades, strict=True)
        if grade.correct
    ]
    assert right == [("5", "x=5")]


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{3} or rather \boxed{\dfrac12}",
        r"<answer>\boxed{0.5}</answer>",
        "<answer>1/2</answer>",
        "1/2",
        r"\boxed{\frac{\sqrt{4}}{4}}",
        r"\boxed{x = \frac12}<|eot_id|>\boxed{3}",
        r"\boxed{\frac12} and \boxed{",
    ],
)
def test_right_answers(text):
    assert make().grade(text, GOLD).correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        r"\boxed{\frac12",
        "<answer>1/2",
        r"\boxed{}",
        r"\boxed{0.4999}",
        r"\boxed{1/2} \boxed{2}",
        "so 1/2",
    ],
)
def test_wrong_answers(text):
    assert not make().grade(text, GOLD).correct


def test_an_endless_answer_holds_nobody_up():
    task = make()
    task.prepare(SandboxConfig())
    texts = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\frac12}", r"\boxed{\sin^2 1 + \cos^2 1 - \frac12}"]
    start = time.monotonic()
    grades = task.grade_all(texts, [GOLD] * 3)
    assert time.monotonic() - start < 20
    assert [grade.correct for grade in grades[:2]] == [False, True]
    assert grades[0].reason == "not compared: took more than 1.5 s or 1024 MB"


def test_reward_parts():
    def parts(text):
        return {k: v for k, v in make().grade(text, GOLD).parts.items() if v}

    assert parts(r"<answer>\boxed{1/2}</answer>") == {"correct": 1, "boxed": 1, "tagged": 1}
    assert parts(r"<answer>\boxed{2}</answer>") == {"boxed": 1, "tagged": 1}
    assert parts(r"\boxed{1/2}") == {"correct": 1}
    assert parts("<answer>1/2") == {"tagged": 1}


@pytest.mark.parametrize("answer", [None, "", " ", True, ["5"]])
def test_gold_answers_must_be_texts(answer):
    with pytest.raises(ValueError, match=r"^answer: .*give the gold answer"):
        make().grade("5", {"answer": answer})
    assert make().grade("5", {"answer": 5}).correct


def test_prompts_and_solutions(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"problem": "What is $1+1$?", "solution": r"It is $\boxed{2}$.", "answer": "2", "level": 1}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"problem": "And 1?", "answer": "3"}) + "\n")
    found = {style: make(data=path, prompt=style).load("test") for style in Task.prompts}
    assert found["compact"][0].solution == "It is $\\boxed{2}$.\n<answer>2</answer>"
    assert found["instruct"][0].solution == "It is $\\boxed{2}$.\n<answer>\n\\boxed{2}\n</answer>"
    assert found["paper"][0].messages[0]["content"] == (
        "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final "
        "answer in a \\boxed{}.\nRespond in the following format:\n<reasoning>\nYour reasoning here\n"
        '</reasoning>\n<answer>\n\\boxed{...}\n</answer>" \n\n\nWhat is $1+1$?'
    )
    for style, prompts in found.items():
        assert make(data=path, prompt=style).validate("test") == []
        assert prompts[0].fields == {"problem": row["problem"], "answer": "2", "level": 1, "subject": None}
        assert prompts[1].solution is None


@pytest.mark.parametrize("name", ["math_train_7466.jsonl.gz", "math_level3to5_8523.jsonl.gz"])
def test_public_training_files_load(name):
    task = make(data=public("math500_test.jsonl"), train_data=public(name))
    assert len(task.load("train")) > 7000 and len(task.load("validation")) == 200
