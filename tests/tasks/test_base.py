"""Tasks whose problems are a data set: where the splits come from, and what is kept out of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from egspo.hub import DatasetSplit
from egspo.tasks import base
from egspo.tasks.base import DatasetConfig, Part
from egspo.types import Grade


class Task(base.DatasetTask):
    """Say what comes after the question."""

    name = "echo"
    parts: ClassVar[Mapping[str, Part]] = {"correct": Part("1 for the answer", 1.0)}
    grade_fields = ("answer",)
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {}

    def grade(self, completion, fields):
        return Grade(completion == fields["answer"], {"correct": 1.0}, completion, "compared")

    def _parse(self, row, split):
        if "question" not in row:
            raise ValueError("question: missing")
        return ({"question": row["question"], "answer": "a"}, "a") if row["question"] != "skip" else None

    def _key(self, fields):
        return fields["question"].strip()

    def _question(self, fields):
        return fields["question"]


def write(path: Path, questions) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": f"{question}"}) + "\n" for question in questions))
    return path


def make(hub=None, **settings) -> Task:
    task = Task(DatasetConfig(name="echo", **settings))
    task.hub = hub or {}
    return task


def questions(task: Task, split: str) -> list[str]:
    return [prompt.fields["question"] for prompt in task.load(split)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set on disk in the layout of the hub, read by the hub's own reader: subsets a and b."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "echo"
    write(folder / "a" / "train.jsonl", range(6))
    write(folder / "b" / "train.jsonl", range(6, 12))
    write(folder / "a" / "test.jsonl", ["2", "t"])
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: a\n  data_files:\n"
        "  - {split: train, path: a/train.jsonl}\n  - {split: test, path: a/test.jsonl}\n"
        "- config_name: b\n  data_files:\n  - {split: train, path: b/train.jsonl}\n---\n"
    )
    name = str(folder)
    return {
        "train": (DatasetSplit(name, "train", "a"), DatasetSplit(name, "train", "b")),
        "test": (DatasetSplit(name, "test", "a"),),
    }


def test_splits_of_the_hub_are_put_together_and_test_problems_are_kept_out(hub):
    task = make(hub, num_validation=4)
    assert questions(task, "test") == ["2", "t"]
    train, validation = questions(task, "train"), questions(task, "validation")
    assert len(validation) == 4
    # Twelve training problems, less the one that is a test problem too.
    assert sorted(train + validation, key=int) == [str(i) for i in range(12) if i != 2]
    assert len({prompt.id for split in base.SPLITS for prompt in task.load(split)}) == 13
    assert task.load("test")[0].id == f"{hub['test'][0].name}/a[test] row 0"


def test_a_file_of_test_problems_replaces_the_test_split_alone(hub, tmp_path):
    task = make(hub, num_validation=2, data=write(tmp_path / "own.jsonl", [" 5 ", "new"]))
    assert questions(task, "test") == [" 5 ", "new"]
    found = questions(task, "train") + questions(task, "validation")
    # The published test problem "2" is none here, the own one "5" is.
    assert sorted(found, key=int) == [str(i) for i in range(12) if i != 5]


def test_a_file_of_training_problems_needs_no_hub(tmp_path):
    """Validation and test come out of it, and nothing is fetched."""
    nowhere = {
        "train": (DatasetSplit("nobody/nothing", "train"),),
        "test": (DatasetSplit("nobody/nothing", "test"),),
    }
    path = write(tmp_path / "own.jsonl", ["skip", *range(20), 3])
    task = make(nowhere, train_data=path, num_validation=5, num_test=4)
    splits = [questions(task, split) for split in base.SPLITS]
    assert [len(split) for split in splits] == [11, 5, 4]
    assert sorted([*splits[0], *splits[1], *splits[2]], key=int) == [str(i) for i in range(20)]
    assert splits == [
        questions(make(train_data=path, num_validation=5, num_test=4), split) for split in base.SPLITS
    ]
    other = make(train_data=path, num_validation=5, num_test=4, seed=1)
    assert questions(other, "test") != splits[2]


def test_two_files_are_all_there_is(tmp_path):
    data, train = write(tmp_path / "test.jsonl", ["1", "2"]), write(tmp_path / "train.jsonl", range(1, 8))
    task = make(data=data, train_data=train, num_validation=2)
    assert questions(task, "test") == ["1", "2"]
    assert sorted(questions(task, "train") + questions(task, "validation")) == ["3", "4", "5", "6", "7"]


def test_what_cannot_be_had_is_told(tmp_path):
    path = write(tmp_path / "own.jsonl", range(3))
    with pytest.raises(
        ValueError, match=r"task\.num_validation: 2 \(and 1 for test\) of 3 training problems leave"
    ):
        make(train_data=path, num_validation=2, num_test=1).load("train")
    with pytest.raises(
        ValueError, match=r"task\.train_data: echo has no train problems of its own; give a file"
    ):
        make(data=path).load("train")
    path.write_text('{"question": "1"}\n{"quest": "2"}\n')
    with pytest.raises(ValueError, match=r"task\.data: .*own\.jsonl:2: question: missing"):
        make(data=path).load("test")


def test_a_name_that_the_hub_does_not_know_is_told(monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(
        ValueError, match=r"task\.data: 'nobody/nothing' \[test\] could not be had from the hub .*give a file"
    ):
        make({"test": (DatasetSplit("nobody/nothing", "test"),)}).load("test")
