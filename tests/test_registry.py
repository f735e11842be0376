"""Tasks by name and by file: found, and told what keeps a file from being a task."""

from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.config import RLRun, parse_section

EXAMPLES = Path(__file__).parents[1] / "examples"
WHOLE = (EXAMPLES / "my_task.py").read_text(encoding="utf-8")
SETTINGS = {"prompt": "compact", "num_digits": 3, "num_train": 50, "num_validation": 10, "num_test": 10}


def changed(folder: Path, old: str, new: str) -> Path:
    """The example's task with something about it changed."""
    assert old in WHOLE
    file = folder / "mine.py"
    file.write_text(WHOLE.replace(old, new), encoding="utf-8")
    return file


def test_a_file_is_a_task_under_its_own_name():
    config = parse_section(RLRun, "task", {"path": str(EXAMPLES / "my_task.py"), **SETTINGS})
    assert (config.name, config.path) == ("sort-digits", EXAMPLES / "my_task.py")
    task = registry.make_task(config)
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [50, 10, 10]
    same = registry.load_task(path=EXAMPLES / "my_task.py", **SETTINGS)
    assert same.config == config and type(same) is type(task)


def test_a_file_is_the_same_from_anywhere(monkeypatch):
    """So that a run is gone on with from another folder; `RunFolder.open` compares settings."""
    monkeypatch.chdir(EXAMPLES)
    config = parse_section(RLRun, "task", {"path": "my_task.py"})
    assert config.path == EXAMPLES / "my_task.py"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("class Task(", "class Tusk(", "has no class Task; write `class Task(base.Task)`"),
        ("class Task(base.GeneratedTask)", "class Task", "has no class Task; write"),
        ("    def grade(", "    def grades(", "class Task lacks the methods grade; write them"),
        ("    def _key(", "    def _kee(", "class Task lacks the methods _key; write them"),
        ('    name = "sort-digits"\n', "", "class Task lacks name; set them as in egspo.tasks.base.Task"),
        ('    version = "1"\n', "", "class Task lacks version; set them as in egspo.tasks.base.Task"),
        ('"sort-digits"', '"sudoku"', "Task.name is 'sudoku'; use letters, digits, '-', '_' or '.'"),
        ('"sort-digits"', '"a/b"', "Task.name is 'a/b'; use letters"),
        ('"sort-digits"', "None", "Task.name is None; use letters"),
        ("    parts: ", "    parts = {}\n    other: ", "Task.parts is no mapping"),
        ("    Config = Config", "    Config = dict", "Task.Config is no subclass of egspo.tasks"),
        ("    Config = Config\n", "", "has a class Config that Task does not use; write `Config = Config`"),
    ],
)  # fmt: skip
def test_what_keeps_a_file_from_being_a_task_is_told(tmp_path: Path, old: str, new: str, line: str):
    file = changed(tmp_path, old, new)
    with pytest.raises(ValueError) as caught:
        registry.task_class(None, file)
    assert str(caught.value).startswith(f"task.path: {file}: {line}")


def test_a_task_that_is_only_imported_is_not_the_files_own(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("from egspo.tasks.toy import Task\n")
    with pytest.raises(ValueError, match="has no class Task"):
        registry.task_class(None, file)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("task.path=no.py", "task.path: no such file: {folder}/no.py; give the path of a .py file"),
        ("task.path=5", "task.path: 5; give the path of a Python file with a class Task"),
        ("task.name=toy", "task.name: 'toy', but the task of {file} is 'sort-digits'; drop task.name"),
        ("task.num_digts=3", "task.num_digts: unknown key; did you mean 'num_digits'?"),
        ("task.num_digits=9", "task.num_digits: 9: Input should be less than or equal to 6"),
        ("task.num_train=99999", "task.num_train: 99999, but 8500 problems are left; lower it"),
    ],
)
def test_a_run_tells_in_one_line_what_is_wrong(tmp_path: Path, monkeypatch, override: str, line: str):
    """The default sizes keep 1000 and 500 of the 10,000 numbers for test and validation."""
    monkeypatch.chdir(tmp_path)
    file = EXAMPLES / "my_task.py"
    settings = [f"task={{path: {file}, num_train: 10}}", "model.init=tiny", "output_dir=x"]
    settings += ["objective={name: egspo, num_selected_steps: 2}", override]
    ended = runs.egspo("train", *settings, "--dry-run")
    assert (ended.code, ended.err) == (2, "egspo: " + line.format(folder=tmp_path, file=file) + "\n")
