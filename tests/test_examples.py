"""The examples run and show what they claim."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.compose import read_yaml
from egspo.config import RLRun, parse_section
from egspo.records import read_rows

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_one_page_method_learns():
    curve = load("one_page").train(iterations=80)
    # Random weights repeat one of six digits by chance: 1/6.
    assert sum(curve[:3]) / 3 < 0.3
    assert sum(curve[-10:]) / 10 > 0.9


def test_the_one_page_method_fits_its_name():
    assert len((EXAMPLES / "one_page.py").read_text(encoding="utf-8").splitlines()) < 150


# ---- tasks of one's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps"), [("my_task", 45), ("custom", 35)])
def test_tasks_of_ones_own_run_from_sft_to_evaluation(name: str, steps: int, tmp_path: Path, monkeypatch):
    """The commands of docs/tasks/own.md, with fewer steps."""
    monkeypatch.chdir(ROOT)
    files = [f"examples/{name}.yaml", f"examples/{name}_sft.yaml"]
    short = ["sft.eval_steps=0", "sft.target_score=null", f"sft.max_steps={steps}"]
    ended = runs.egspo("sft", *files, *short, f"output_dir={tmp_path / 'sft'}")
    assert ended.code == 0, ended
    rl = [f"examples/{name}.yaml", f"examples/{name}_rl.yaml", "train.max_steps=3", "train.eval_steps=0"]
    base = f"model.model_name_or_path={tmp_path / 'sft/model'}"
    ended = runs.egspo("train", *rl, base, f"output_dir={tmp_path / 'rl'}")
    assert ended.code == 0, ended
    rewards = [row["reward/mean"] for row in runs.rows(tmp_path / "rl")]
    parts = {"my_task": ("sorted", "places", "same"), "custom": ("reward",)}[name]
    assert all(row[f"reward/{part}"] is not None for row in runs.rows(tmp_path / "rl") for part in parts)
    # Untrained, a fifth or less of the symbols would be right.
    assert min(rewards) > 0.3
    out = tmp_path / "eval.json"
    monkeypatch.chdir(tmp_path)
    assert runs.egspo("eval", str(tmp_path / "rl"), "--limit", "20", "--out", str(out)).code == 0
    assert json.loads(out.read_text())["n"] == 20


def test_the_commands_of_the_docs_name_files_and_keys_that_are_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/tasks/own.md").read_text(encoding="utf-8")
    commands = re.findall(r"^egspo (sft|train) (.*)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for kind, rest in commands:
        # A model that an earlier command makes is not there yet.
        fresh = ["model.init=tiny", "model.model_name_or_path=null"]
        arguments = [*rest.partition(" #")[0].split(), *(fresh if kind == "train" else [])]
        ended = runs.egspo(kind, *arguments, "--dry-run")
        assert ended.code == 0, ended


def test_the_mix_of_the_docs_is_one(tmp_path: Path):
    text = (ROOT / "docs/tasks/mix.md").read_text(encoding="utf-8")
    file = tmp_path / "mix.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    task = registry.make_task(parse_section(RLRun, "task", read_yaml(file)["task"]))
    assert task.train_weights == {"sudoku": 2.0, "small": 1.0}


# ---- generated problems --------------------------------------------------------------------------------


def written(name: str, folder: Path, *arguments: str) -> dict[str, list[dict]]:
    """The rows of the files that an example writes."""
    load(name).main([str(folder), *arguments])
    files = {split: folder / f"{split}.jsonl" for split in ("train", "test")}
    return {split: [row for _, row in read_rows(file, "task.data")] for split, file in files.items()}


LINE = re.compile(r"([0-9]+)([-+*/])([0-9]+)=([0-9]+)")


def calculated(answer: str) -> int:
    """The result of the calculations of an answer, each of which has to be right and go on from the last."""
    result = None
    for line in answer.splitlines()[:-1]:
        left, sign, right, stated = LINE.fullmatch(line).groups()
        assert result in (None, int(left))
        result = {
            "+": int(left) + int(right),
            "-": int(left) - int(right),
            "*": int(left) * int(right),
            "/": int(left) / int(right),
        }[sign]
        assert result == int(stated) > 0
    return result


@pytest.mark.parametrize(("steps", "largest"), [(1, 12), (2, 20), (3, 99)])
def test_word_problems_are_in_the_published_format_short_and_right(tmp_path: Path, steps: int, largest: int):
    options = ("--num", "800", "--num-test", "60", "--steps", str(steps), "--max-number", str(largest))
    files = written("make_word_problems", tmp_path, *options)
    assert {split: len(rows) for split, rows in files.items()} == {"train": 800, "test": 60}
    for row in files["train"] + files["test"]:
        assert list(row) == ["question", "answer"] and len(row["question"]) < 70
        reasoning, mark, number = row["answer"].partition("#### ")
        assert mark and len(reasoning.strip()) < 40
        assert calculated(row["answer"]) == int(number)
        # Every number of the question is used, in order, but results that were not in it.
        asked = re.findall("[0-9]+", row["question"])
        lines = LINE.findall(row["answer"])
        assert asked == [lines[0][0], *(line[2] for line in lines)]
        assert max(map(int, asked)) <= largest
    used = {split: {row["answer"] for row in rows} for split, rows in files.items()}
    assert not used["train"] & used["test"]
    questions = [row["question"] for rows in files.values() for row in rows]
    assert len(set(questions)) == len(questions)
    counts = {row["answer"].count("\n") for row in files["train"]}
    assert counts == set(range(1, steps + 1))


def test_functions_pass_their_tests_which_neither_a_constant_nor_the_argument_does(tmp_path: Path):
    files = written("make_code_problems", tmp_path, "--num", "900", "--num-test", "100")
    assert {split: len(rows) for split, rows in files.items()} == {"train": 900, "test": 100}
    for row in files["train"] + files["test"]:
        assert sorted(row) == ["entry_point", "prompt", "solution", "test"] and row["entry_point"] == "f"
        assert row["prompt"].startswith("Write f(x): ")
        assert len(row["solution"]) < 40 and len(row["prompt"]) < 50
        tests = row["test"].splitlines()
        assert len(tests) == 4 and all(test.startswith("assert f(") for test in tests)
        assert passes(row["solution"], row["test"])
        first = tests[0].partition(" == ")[2]
        assert not passes(f"def f(x): return {first}", row["test"])
        assert not passes("def f(x): return x", row["test"])
    rows = files["train"] + files["test"]
    for key in ("prompt", "solution"):
        assert len({row[key] for row in rows}) == len(rows)


def passes(solution: str, tests: str) -> bool:
    """Whether assertions hold; all of it was made by the example, so that it may run here."""
    names: dict = {}
    exec(solution, names)
    try:
        exec(tests, names)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("name", ["make_word_problems", "make_code_problems"])
def test_the_same_options_write_the_same_files_and_another_seed_others(name: str, tmp_path: Path):
    size = ("--num", "50", "--num-test", "10")
    first, again, other = (
        written(name, tmp_path / folder, *size, "--seed", seed)
        for folder, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("make_word_problems", ["--steps", "1"], "test found; ask for fewer, more --steps or a larger --max"),
        ("make_code_problems", [], "1000000 and 200 problems, but there are "),
    ],
)
def test_more_problems_than_there_are_end_with_one_line(name, options, line, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        load(name).main([str(tmp_path), "--num", "1000000", "--max-number", "3", *options])
    assert ended.value.code == 2
    assert line in capsys.readouterr().err


def test_the_demo_looks_at_its_file_before_it_trains(tmp_path: Path):
    surroundings = {**os.environ, "DATA": str(tmp_path), "OUT": str(tmp_path / "out")}
    ended = subprocess.run(
        ["bash", str(EXAMPLES / "demo.sh")], env=surroundings, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2 and f"DATA={tmp_path} is no file" in ended.stderr
    assert not (tmp_path / "out").exists()
