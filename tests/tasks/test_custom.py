"""Prompts in a file and a reward function: what it gets, what becomes of its rewards, and its errors."""

import itertools
import json
from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.config import RLRun, parse_section

EXAMPLES = Path(__file__).parents[2] / "examples"
FUNCTIONS = """
def length(prompts, completions, **columns):
    assert "prompt" not in columns and "completion" not in columns and "generation" not in columns
    return [float(len(text)) for text in completions]

def seen(prompts, completions, **columns):
    raise ValueError(repr((prompts, completions, columns)))

def asked(prompts, completions, **_):
    return [1.0 if text == messages[-1]["content"] else None for messages, text in zip(prompts, completions)]

def nan(completions, **_):
    return [float("nan")] * len(completions)

def one(completions, **_):
    return [1.0]

def broken(completions, **_):
    return [1 / 0 for _ in completions]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    file = tmp_path / "functions.py"
    file.write_text(FUNCTIONS)
    return file


def write(folder: Path, *rows: dict, name: str = "prompts.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def custom(reward: str, **settings):
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    return registry.make_task(parse_section(RLRun, "task", {"name": "custom", "reward": reward, **settings}))


@pytest.mark.parametrize(
    ("row", "messages", "solution"),
    [
        ({"prompt": "q"}, [("user", "q")], None),
        ({"prompt": "q", "completion": "a"}, [("user", "q")], "a"),
        ({"prompt": "q", "solution": "a"}, [("user", "q")], "a"),
        ({"prompt": "q", "completion": "a", "solution": "b"}, [("user", "q")], "a"),
        ({"prompt": "q", "solution": 7}, [("user", "q")], None),
        ({"Prompt": "q", "COMPLETION": "a"}, [("user", "q")], "a"),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q", "name": "x"}]},
            [("system", "s"), ("user", "q")],
            None,
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [("user", "q")],
            "a",
        ),
        (
            {"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]},
            [("user", "q")],
            "a",
        ),
    ],
)
def test_rows_are_prompts_with_what_sft_learns_from(tmp_path, functions, row, messages, solution):
    task = custom(f"{functions}:length", data=write(tmp_path, row))
    (prompt,) = task.load("test")
    assert [(message["role"], message["content"]) for message in prompt.messages] == messages
    assert prompt.solution == solution
    assert prompt.id == "prompts.jsonl:1"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"text": "q"}, "prompt: missing; give a text, or chat messages with role and content"),
        ({"prompt": ""}, "prompt: missing"),
        ({"prompt": [{"role": "user"}]}, "prompt: missing"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "prompt: missing"),
        ({"prompt": "q", "completion": 3}, "completion: 3 is no text; give one, or leave it out"),
        ({"prompt": "q", "prompts": 1}, "prompts: is an argument of every reward function"),
    ],
)
def test_a_row_that_is_no_prompt_is_told_with_its_line(tmp_path, functions, row, line):
    file = write(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(ValueError) as caught:
        custom(f"{functions}:length", data=file).load("test")
    assert str(caught.value).startswith(f"task.data: {file}:2: {line}")


def test_the_function_gets_prompts_completions_and_all_other_columns(tmp_path, functions):
    rows = [
        {"prompt": "q", "completion": "a", "solution": "s", "level": 3},
        {"prompt": "r", "answer": "x"},
    ]
    task = custom(f"{functions}:seen", data=write(tmp_path, *rows))
    fields = [prompt.fields for prompt in task.load("test")]
    expected = (
        [[{"role": "user", "content": "q"}], [{"role": "user", "content": "r"}]],
        ["one", "two"],
        {"answer": [None, "x"], "level": [3, None], "solution": ["s", None]},
    )
    with pytest.raises(ValueError) as caught:
        # Nothing behind the end of a text counts.
        task.grade_all(["one<|endoftext|>more", "two"], fields)
    # The line is cut where it would be longer than anyone reads.
    assert f"{functions}:seen raised ValueError: {repr(expected)[:200]} (" in str(caught.value)


def test_a_reward_is_one_part_and_correct_from_a_bound_on(tmp_path, functions):
    task = custom(f"{functions}:length", data=write(tmp_path, {"prompt": "q"}), correct_at=3)
    fields = task.load("test")[0].fields
    grades = task.grade_all(["ab", "abc", "abcd"], [fields] * 3)
    assert [grade.parts for grade in grades] == [{"reward": 2.0}, {"reward": 3.0}, {"reward": 4.0}]
    assert [grade.correct for grade in grades] == [False, True, True]
    assert grades[0].reason == "reward 2, correct from 3 on"
    assert task.grade("abc", fields) == grades[1]
    assert task.grade_all([], []) == []


def test_none_is_no_reward_and_not_correct(tmp_path, functions):
    task = custom(f"{functions}:asked", data=write(tmp_path, {"prompt": "q"}))
    grades = task.grade_all(["q", "x"], [task.load("test")[0].fields] * 2)
    assert [(grade.correct, grade.parts) for grade in grades] == [(True, {"reward": 1.0}), (False, {})]
    assert grades[1].reason == "the reward function does not apply"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nan", "returned nan for completion 0; return a number or None"),
        ("one", "returned 1 rewards for 2 completions; return one each"),
        ("broken", "raised ZeroDivisionError: division by zero ("),
    ],
)
def test_a_function_that_misbehaves_is_named(tmp_path, functions, name, line):
    task = custom(f"{functions}:{name}", data=write(tmp_path, {"prompt": "q"}))
    with pytest.raises(ValueError) as caught:
        task.grade_all(["a", "b"], [task.load("test")[0].fields] * 2)
    assert str(caught.value).startswith(f"task.reward: {functions}:{name} {line}")
    assert "\n" not in str(caught.value)


def test_splits_are_taken_out_of_the_training_file_and_share_no_prompt(tmp_path, functions):
    """Twelve rows, of which two are one and two have one prompt: these are kept, both in one split."""
    rows = [{"prompt": f"p{n}", "level": n} for n in range(10)] + [
        {"prompt": "p0", "level": 99},
        {"prompt": "p1", "level": 1},
    ]
    file = write(tmp_path, *rows)
    task = custom(f"{functions}:length", train_data=file, num_validation=3, num_test=2)
    sizes = {split: len(task.load(split)) for split in ("train", "validation", "test")}
    assert 3 <= sizes["validation"] <= 4 and 2 <= sizes["test"] <= 3 and sum(sizes.values()) == 11
    prompts = {split: [p.messages[0]["content"] for p in task.load(split)] for split in sizes}
    assert sorted(itertools.chain(*prompts.values())) == sorted([*(f"p{n}" for n in range(10)), "p0"])
    assert sorted(names.count("p0") for names in prompts.values()) == [0, 0, 2]


def test_files_are_the_same_from_anywhere(tmp_path, functions, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = custom("functions.py:length", data=write(tmp_path, {"prompt": "q"})).config
    assert config.reward == f"{functions}:length"
    assert custom("json:loads", data=write(tmp_path, {"prompt": "q"})).config.reward == "json:loads"


def test_saved_generations_are_graded_by_the_function(tmp_path, functions):
    rows = [
        {"prompt": "q", "generation": "q"},
        {"messages": [{"role": "user", "content": "q"}], "generation": "x"},
        {"generation": "x"},
    ]
    file = write(tmp_path, *rows)
    ended = runs.egspo("grade", "--task", "custom", str(file), f"task.reward={functions}:asked")
    verdicts = [json.loads(line) for line in ended.out.splitlines()[:-1]]
    assert [(v["correct"], v["reward"]) for v in verdicts] == [(True, 1.0), (False, 0), (False, 0.0)]
    assert verdicts[2]["reason"].startswith("line 3: prompt: missing")
    ended = runs.egspo("grade", "--task", "custom", str(file), f"task.reward={functions}:broken")
    assert "line 1: task.reward: " in ended.err and "ZeroDivisionError" in ended.err
    ended = runs.egspo("grade", "--task", "custom", str(file))
    assert (ended.code, ended.err) == (
        2,
        "egspo: task.reward: missing; set it in a file or as task.reward=VALUE\n",
    )


def test_a_misbehaving_function_ends_a_run_with_one_line(tmp_path, functions):
    rows = [{"prompt": f"{n}"} for n in range(20)]
    task = {"name": "custom", "train_data": str(write(tmp_path, *rows)), "reward": f"{functions}:nan"}
    task |= {"num_validation": 2, "num_test": 2}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(runs.RL | {"output_dir": str(tmp_path / "run"), "task": task}))
    ended = runs.egspo("train", str(file))
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("egspo: ")]
    assert line.startswith(f"egspo: task.reward: {functions}:nan returned nan for completion 0")
