"""What every file in the tasks folder has to keep."""

import json
import math
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egspo import registry
from egspo.sandbox import SandboxConfig
from egspo.tasks.base import SPLITS, Task
from egspo.types import Grade

NAMES = registry.names("tasks")
TASKS = {name: registry.load("tasks", name) for name in NAMES}
STYLES = [(name, style) for name in NAMES for style in TASKS[name].prompts if style is not None]
STYLES.remove(("mix", "paper"))  # the toy task in it has none
EXAMPLES = Path(__file__).parents[2] / "examples"
# What a task cannot do without.
NEEDED = {
    "mix": {
        "tasks": [
            {"name": "sudoku", "weight": 2, "num_train": 100, "num_validation": 40, "num_test": 40},
            {"name": "countdown", "label": "large", "num_train": 100, "num_validation": 40, "num_test": 40},
            {"name": "toy"},
        ]
    },
    "custom": {
        "train_data": EXAMPLES / "prompts.jsonl",
        "reward": f"{EXAMPLES / 'rewards.py'}:capitals",
        "num_validation": 20,
        "num_test": 20,
    },
}
GARBAGE = {
    "empty": "",
    "tower of powers": "9**9**9**9",
    "boxed tower of powers": r"\boxed{9**9**9**9}",
    "open parentheses": "(" * 10_000,
    "open parentheses in tags": f"<answer>{'(' * 10_000}</answer>",
    "closed parentheses": "(" * 10_000 + "1" + ")" * 10_000,
    "huge number": "9" * 100_000,
    "huge number in tags": f"<answer>{'9' * 100_000}</answer>",
    "huge number of four hundred digits": f"<answer>{'9' * 399}</answer>",
    "unicode digits": "\uff11\uff12\uff13\uff14" * 4,
    "superscripts": "<answer>²³¹⁴</answer>",
    "arabic digits": "\\boxed{\u0661+\u0662}",
    "nested boxes": r"\boxed{" * 5_000 + "1" + "}" * 5_000,
    "open boxes": r"\boxed{" * 20_000,
    "open tags": "<answer>" * 20_000,
    "end token first": "<|eot_id|><answer>1</answer>",
    "null bytes": "\x00" * 100,
    "lone surrogate": "<answer>\ud800</answer>",
    "format string": "{0.__class__} %s %n {}",
    "long fraction": r"\frac{" * 1_000 + "1" + "}{2}" * 1_000,
    "many lines": "1\n" * 50_000,
    "blanks": " " * 200_000,
    "division by zero": "<answer>1/0</answer>",
    "a second equals sign": "1=1=1",
}


DATA = Path(__file__).parents[2].parent / "shared" / "data"
FILES = {
    "gsm8k": {"data": "gsm8k/test.jsonl", "train_data": "gsm8k/train.jsonl.gz"},
    "math500": {
        "data": "math/math500_test.jsonl",
        "train_data": "math/math_test_minus_math500_4500.jsonl.gz",
    },
    "humaneval": {"data": "humaneval/HumanEval.jsonl.gz"},
    "mbpp": {"data": "mbpp/sanitized-mbpp.json"},
    "code": {"train_data": "code_rl/kodcode_demo.jsonl.gz"},
}
"""Files of the data sets that some tasks read; where they are not here, the tests that need problems skip."""


@cache
def make(name: str, style: str) -> Task:
    task_class = registry.load("tasks", name)
    # A task that generates its problems makes this many; one that reads them keeps them for validation.
    sizes = {"num_train": 300, "num_validation": 50, "num_test": 50}
    sizes = {size: num for size, num in sizes.items() if size in task_class.Config.model_fields}
    paths = {key: DATA / file for key, file in FILES.get(name, {}).items()}
    files = paths if all(path.is_file() for path in paths.values()) else {}
    task = task_class(task_class.Config(name=name, prompt=style, **(sizes | NEEDED.get(name, {}) | files)))
    task.prepare(SandboxConfig(timeout=3))
    return task


@cache
def load(name: str, style: str, split: str):
    """Problems of a split; a task that reads a file of problems and has none here is skipped."""
    try:
        return make(name, style).load(split)
    except ValueError as error:
        if any(words in str(error) for words in ("task.data", "task.train_data", "problems of its own")):
            pytest.skip(f"{name} has no problems of its own: {error}")
        raise


every_task = pytest.mark.parametrize("name", NAMES)
every_style = pytest.mark.parametrize(("name", "style"), STYLES)


def check(grade: Grade, task: Task) -> None:
    assert isinstance(grade.correct, bool) and grade.reason
    assert grade.extracted is None or isinstance(grade.extracted, str)
    # In a mix those of the task that the problem is of apply, and they begin with its label.
    label = next(iter(grade.parts)).rpartition("/")[0]
    assert set(grade.parts) == {part for part in task.parts if part.rpartition("/")[0] == label}
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in grade.parts.values())
    assert all(0 <= right <= of for right, of in grade.counts.values())


@every_task
def test_describes_itself(name):
    task_class = registry.load("tasks", name)
    assert task_class.name == name and task_class.description and task_class.version and task_class.source
    assert task_class.__doc__ and "\n" not in task_class.description
    parts = make(name, "instruct").parts.values()
    assert any(part.kind == "correctness" and part.weight for part in parts)
    assert all(part.description for part in parts)


@every_style
def test_splits_are_not_empty_and_share_no_prompt(name, style):
    prompts = {split: {str(prompt.messages) for prompt in load(name, style, split)} for split in SPLITS}
    assert all(prompts.values())
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]


@every_style
@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_of_every_split_are_right(name, style, split):
    load(name, style, split)
    # All of a published data set are in its task's own tests.
    assert make(name, style).validate(split, limit=20 if name in FILES else None) == []


@every_task
@pytest.mark.parametrize("split", SPLITS)
def test_same_settings_give_the_same_list(name, split):
    first = load(name, "instruct", split)
    assert first == make.__wrapped__(name, "instruct").load(split)
    assert len({prompt.id for prompt in first}) == len(first)


@every_style
def test_prompts_are_messages_with_fields_that_can_be_written_down(name, style):
    prompt = load(name, style, "test")[0]
    assert [set(message) for message in prompt.messages] == [{"role", "content"}] * len(prompt.messages)
    assert set(make(name, style).grade_fields) <= set(prompt.fields)
    written = json.loads(json.dumps(dict(prompt.fields)))
    check(make(name, style).grade("1", written), make(name, style))


@every_style
def test_a_right_answer_earns_more_than_garbage(name, style):
    task, prompt = make(name, style), load(name, style, "test")[0]
    grades = task.grade(prompt.solution, prompt.fields), task.grade("", prompt.fields)
    weights = task.reward_weights
    right, wrong = (sum(weights[part] * value for part, value in grade.parts.items()) for grade in grades)
    assert right > wrong and not grades[1].correct


@every_style
@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_graded_wrong_and_fast(name, style, case):
    task, prompt = make(name, style), load(name, style, "test")[0]
    start = time.monotonic()
    grade = task.grade(GARBAGE[case], prompt.fields)
    assert time.monotonic() - start < 20  # by the clock, since other processes grade too
    check(grade, task)
    assert not grade.correct


@every_style
@settings(deadline=None, max_examples=50)
@given(text=st.text(), wrap=st.sampled_from(["{}", "<answer>{}</answer>", "\\boxed{{{}}}"]))
def test_any_text_is_graded(name, style, text, wrap):
    task, prompt = make(name, style), load(name, style, "test")[0]
    check(task.grade(wrap.format(text), prompt.fields), task)


def paper_task(name: str, style: str = "instruct") -> Task:
    if registry.load("tasks", name).paper_grade is Task.paper_grade:
        pytest.skip(f"{name} has no published grader")
    return make(name, style)


@every_task
@pytest.mark.parametrize("case", GARBAGE)
def test_the_published_grader_survives_garbage(name, case):
    task, prompt = paper_task(name), load(name, "instruct", "test")[0]
    start = time.process_time()
    grade = task.paper_grade(GARBAGE[case], prompt.fields)
    assert time.process_time() - start < 5
    check(grade, task)
    assert not grade.correct


@every_task
@settings(deadline=None, max_examples=50)
@given(text=st.text(), wrap=st.sampled_from(["{}", "<answer>{}</answer>", "\\boxed{{{}}}"]))
def test_the_published_grader_grades_any_text(name, text, wrap):
    task, prompt = paper_task(name), load(name, "instruct", "test")[0]
    check(task.paper_grade(wrap.format(text), prompt.fields), task)


@every_task
@pytest.mark.parametrize("fields", [{}, {"puzzle": ["1"], "numbers": "a", "target": None, "answer": [3]}])
def test_fields_of_another_task_are_a_data_error(name, fields):
    with pytest.raises(ValueError):
        make(name, "instruct").grade("1", fields)


@every_task
@pytest.mark.parametrize("split", ["dev", "Test", ""])
def test_unknown_splits_are_refused(name, split):
    with pytest.raises(
        ValueError, match=rf"split: {split!r} is unknown; give one of train, validation, test"
    ):
        make(name, "instruct").load(split)


@every_task
def test_unknown_parts_and_settings_are_refused(name):
    task_class = registry.load("tasks", name)
    needed = {"name": name, **NEEDED.get(name, {})}
    with pytest.raises(ValueError, match="no part 'nonsense'"):
        task_class(task_class.Config(**needed, reward_weights={"nonsense": 1.0}))
    with pytest.raises(ValueError, match="nonsense"):
        task_class.Config(**needed, nonsense=1)
    with pytest.raises(ValueError, match="seed"):
        task_class.Config(**needed, seed=-1)
