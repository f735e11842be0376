"""The user's own code: found where it is said to be, and one clear line for whatever is wrong with it."""

import os
import re
import sys
from pathlib import Path

import pytest

from egspo.external import call_reward, import_file, import_function

USER = [{"role": "user", "content": "q"}]


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """What the imports add to the search path goes with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_file_is_run_once_and_again_when_it_has_changed(tmp_path: Path):
    file = write(tmp_path, "value = []\n")
    first = import_file(file, "f")
    assert import_file(tmp_path / "x" / ".." / "mine.py", "f") is first
    file.write_text("value = [1]\n")
    os.utime(file, ns=(0, 1))  # as if later, however coarse the clock of the file system
    assert import_file(file, "f").value == [1]


def test_a_file_may_import_what_lies_beside_it_and_use_dataclasses(tmp_path: Path):
    write(tmp_path, "answer = 42\n", "beside_it.py")
    text = "from dataclasses import dataclass\nfrom beside_it import answer\n"
    text += "@dataclass\nclass A:\n    x: 'int' = answer\n"
    assert import_file(write(tmp_path, text), "f").A().x == 42


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\n\ny = undefined\n", "NameError: name 'undefined' is not defined ({file}:3)"),
        ("def f(:\n", "SyntaxError: invalid syntax ({file}:1)"),
        ("import nowhere_x\n", "ModuleNotFoundError: No module named 'nowhere_x' ({file}:1)"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", "ValueError: a ({file}:2)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({file}:2)"),
        ("import json\njson.loads('{')\n", "JSONDecodeError: Expecting property name"),
    ],
)
def test_a_file_that_raises_is_told_in_one_line_with_its_place(tmp_path: Path, text: str, line: str):
    file = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        import_file(file, "task.path")
    assert str(caught.value).startswith("task.path: " + line.format(file=file))
    assert str(caught.value).endswith(f"; correct {file}") and "\n" not in str(caught.value)
    # Nothing of the half module stays behind.
    with pytest.raises(ValueError):
        import_file(file, "task.path")


@pytest.mark.parametrize(("name", "what"), [("no.py", "no such file"), ("no.txt", "not a Python file")])
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, what: str):
    with pytest.raises(ValueError, match=rf"^f: {what}: {re.escape(str(tmp_path / name))}; give the path of"):
        import_file(tmp_path / name, "f")


def test_functions_are_found_in_files_and_in_modules_of_the_working_directory(tmp_path: Path, monkeypatch):
    write(tmp_path, "def score(**_):\n    return 1\n", "own_rewards_here.py")
    assert import_function(f"{tmp_path / 'own_rewards_here.py'}:score", "f")() == 1
    monkeypatch.chdir(tmp_path)
    assert import_function("own_rewards_here:score", "f")() == 1
    assert import_function("own_rewards_here.py:score", "f")() == 1
    assert import_function("os.path:join", "f") is os.path.join


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("score", "'score' names no function; write module:function or file.py:function"),
        (":score", "':score' names no function"),
        ("json:", "'json:' names no function"),
        ("json:a.b", "'json:a.b' names no function"),
        ("no_module_here:f", "no module 'no_module_here' in the working directory or installed"),
        ("os.no_module_here:f", "no module 'os.no_module_here' in the working directory or installed"),
        ("json:nothing", "json has no function 'nothing'; it has: dump, dumps, "),
        ("json:__name__", "json has no function '__name__'"),
        (".json:loads", "'.json' cannot be imported: TypeError"),
    ],
)
def test_a_reference_to_nothing_is_told(reference: str, line: str):
    with pytest.raises(ValueError) as caught:
        import_function(reference, "task.reward")
    assert str(caught.value).startswith(f"task.reward: {line}")


def test_a_module_that_raises_is_told_with_the_place(tmp_path: Path, monkeypatch):
    write(tmp_path, "import json\n\n1 / 0\n", "raises_when_imported.py")
    monkeypatch.chdir(tmp_path)
    place = re.escape(f"({tmp_path / 'raises_when_imported.py'}:3)")
    with pytest.raises(ValueError, match=f"cannot be imported: ZeroDivisionError: division by zero {place}"):
        import_function("raises_when_imported:f", "f")


def test_columns_are_lists_with_none_where_a_row_has_no_such_field():
    def reward(prompts, completions, **columns):
        assert prompts == [USER, USER] and completions == ["a", "b"]
        assert columns == {"x": [1, None], "y": [None, 2]}
        return [1, None]

    assert call_reward(reward, "r", [USER, USER], ["a", "b"], [{"x": 1}, {"y": 2}]) == [1.0, None]


def test_what_a_reward_raises_comes_with_file_and_line(tmp_path: Path):
    """`tests/test_rewards.py` has what else a function can get wrong."""
    text = "def f(completions, **_):\n    return [helper(c) for c in completions]\n\n"
    file = write(tmp_path, text + "def helper(c):\n    return 1 / 0\n")
    function = import_function(f"{file}:f", "f")
    with pytest.raises(ValueError) as caught:
        call_reward(function, "task.reward: mine", [USER], ["a"], [{}])
    assert str(caught.value) == f"task.reward: mine raised ZeroDivisionError: division by zero ({file}:5)"
