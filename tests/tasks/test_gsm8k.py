"""GSM8K: files as published, what an answer is, rewards, and both graders."""

import json
from pathlib import Path

import pytest

from egspo import records
from egspo.tasks.gsm8k import Task

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
ROW = {"question": "Six and six eggs?", "answer": "Six and six are 6+6=<<6+6=12>>12.\n#### 1,234"}
CLOSED = "<reasoning>\nr\n</reasoning>\n<answer>\n{}\n</answer>\n"


def make(**settings) -> Task:
    return Task(Task.Config(name="gsm8k", **settings))


def public(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"public file {name} is not here")
    return DATA / name


def correct(completion: str, answer="1,234") -> bool:
    return make().grade(completion, {"answer": answer}).correct


@pytest.mark.parametrize("name", ["test.jsonl", "train.jsonl.gz"])
def test_every_official_answer_is_right_in_every_form(name):
    task = make()
    rows = [row for _, row in records.read_rows(public(name), "data")]
    assert len(rows) in (1319, 7473)
    assert all(grade.correct for grade in task.grade_all([row["answer"] for row in rows], rows))
    for row in rows[:: len(rows) // 500]:
        number = row["answer"].rpartition("####")[2].strip()
        texts = [f"\\boxed{{{number}}}", f"<answer>${number} in all</answer>"]
        assert all(grade.correct for grade in task.grade_all(texts, [row] * 2)), row
        value = float(number.replace(",", ""))
        assert not task.grade(f"\\boxed{{{value + 1:.0f}}}", row).correct
        assert task.paper_grade(f"\\boxed{{{value}}}", row).correct == (value >= 0)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5} so \boxed{1234}",
        r"\boxed{\$1,234.00}",
        r"<answer>\boxed{1234 \text{ eggs}}</answer>",
        "<answer>5</answer> no, <answer>1234.</answer>",
        "1234",
        "They are 1234.",
        "1200 + 34 are 1234\n#### 1,234\nQuestion: 5?",
        r"\boxed{1234}<|eot_id|>\boxed{5}",
        r"\boxed{1200 + 34 = 1234}",
        r"\boxed{1234} \boxed{",
    ],
)
def test_right_answers(text):
    assert correct(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        r"\boxed{1234",
        "<answer>1234",
        r"\boxed{1234} \boxed{5}",
        r"\boxed{5}<|endoftext|>\boxed{1234}",
        r"\boxed{1.234}",
        r"\boxed{-1234}",
        r"\boxed{1234.5}",
        r"\boxed{1234 or 5}",
        r"\boxed{1234 + 0}",
        "1200 and 34",
        "<|eot_id|>1234",
    ],
)
def test_wrong_answers(text):
    assert not correct(text)


@pytest.mark.parametrize("answer", ["1,234", "1234", "so\n#### 1,234", 1234, 1234.0, "$1,234"])
def test_gold_answers_may_be_numbers_or_the_official_text(answer):
    assert correct(r"\boxed{1234}", answer) and not correct(r"\boxed{1235}", answer)


def test_negative_gold_answers():
    assert correct(r"\boxed{-10}", "#### -10") and not correct(r"\boxed{10}", "#### -10")
    assert not make().paper_grade(r"\boxed{-10}", {"answer": "#### -10"}).correct


@pytest.mark.parametrize("answer", [None, True, [18], "", "eighteen", "#### ", "3 or 4"])
def test_other_gold_answers_are_an_error_of_the_data(answer):
    with pytest.raises(ValueError, match=r"^answer: .*give"):
        make().grade("18", {"answer": answer})


def test_reward_parts():
    def parts(text):
        return {k: v for k, v in make().grade(text, {"answer": "18"}).parts.items() if v}

    published = {"exact": 1, "tags": 1, "soft_format": 1, "strict_format": 1, "integer": 1}
    assert parts(CLOSED.format(18)) == {"correct": 1, "formed": 1, **published}
    assert parts(CLOSED.format("$18")) == {
        "correct": 1, "formed": 1, "tags": 1, "soft_format": 1, "strict_format": 1,
    }  # fmt: skip
    assert parts(r"\boxed{17}") == {"formed": 1}
    assert parts("18") == {"correct": 1, "exact": 1, "integer": 1}
    assert parts(r"\boxed{eighteen}") == {}


def test_the_published_sum():
    """0.5 for tags, 0.5 for each of the two formats, 0.5 for an integer and 2 for the answer."""
    shapes = ("tags", "soft_format", "strict_format", "integer")
    weights = {"correct": 0.0, "formed": 0.0, "exact": 2.0} | dict.fromkeys(shapes, 0.5)
    task = make(reward_weights=weights)

    def reward(text):
        grade = task.grade(text, {"answer": "18"})
        return sum(task.reward_weights[name] * value for name, value in grade.parts.items())

    assert reward(CLOSED.format(18)) == 4.0
    assert reward(CLOSED.format(17)) == 2.0
    assert reward("18") == 2.5


def test_prompts_and_solutions(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"question": "And one?", "answer": "13"}) + "\n")
    found = {style: make(data=path, prompt=style).load("test") for style in Task.prompts}
    assert found["compact"][0].messages[0]["content"] == ROW["question"]
    assert found["compact"][0].solution == "Six and six are 6+6=12.\n<answer>1234</answer>"
    assert found["instruct"][0].solution == "Six and six are 6+6=12.\n<answer>\n\\boxed{1234}\n</answer>"
    assert found["paper"][0].messages[0]["content"] == (
        "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final "
        "answer in a \\boxed{}. \nRespond in the following format:\n<reasoning>\nYour reasoning here\n"
        "</reasoning>\n<answer>\n\\boxed{...}\n</answer>\n\nSix and six eggs?"
    )
    for prompts in found.values():
        assert ROW["question"] in prompts[0].messages[0]["content"]
        assert prompts[0].fields == {"question": ROW["question"], "answer": "1,234"}
        assert prompts[1].solution is None


def test_rows_that_are_no_problems_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"question": "?", "answer": "many"}) + "\n")
    with pytest.raises(ValueError, match=r"task\.data: .*rows\.jsonl:2: answer: 'many' is no number"):
        make(data=path).load("test")
    path.write_text(json.dumps({"question": " ", "answer": "1"}) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: question: ' '; give the text of the problem"):
        make(data=path).load("test")
