"""Held-out problems that a model was trained on before are counted."""

import json
import re
from pathlib import Path

import pytest

from egspo import registry
from egspo.config import ModelConfig
from egspo.seen import seen
from egspo.settings import saved_task

COUNTDOWN = {
    "prompt": "compact",
    "num_numbers": 3,
    "max_number": 30,
    "max_target": 60,
    "operators": "+-*",
    "num_train": 3000,
    "num_validation": 200,
    "num_test": 300,
}


def countdown(**settings):
    return registry.load_task("countdown", **COUNTDOWN | settings)


def saved(task) -> dict:
    """As it stands beside a model's weights."""
    return json.loads(task.config.model_dump_json(exclude={"data"}))


def problems(task, split: str) -> list[tuple]:
    return [(*sorted(p.fields["numbers"]), p.fields["target"]) for p in task.load(split)]


def test_problems_of_another_seed_are_counted():
    before, now = countdown(seed=3), countdown(seed=4)
    trained = set(problems(before, "train"))
    counts = {split: sum(p in trained for p in problems(now, split)) for split in ("validation", "test")}
    assert min(counts.values()) > 0
    assert seen(saved(before), now) == (
        f"the model was trained on {counts['validation']} of 200 validation problems and "
        f"{counts['test']} of 300 test problems before (task.seed: 3 then, 4 now)"
    )


@pytest.mark.parametrize("change", [{}, {"prompt": "instruct"}, {"reward_weights": {"formed": 0.2}}])
def test_the_same_problems_are_held_out_still(change: dict):
    assert seen(saved(countdown()), countdown(**change)) == ""


def test_other_settings_without_a_problem_in_common_are_no_matter():
    assert seen(saved(countdown()), countdown(num_numbers=2)) == ""


def test_sudokus_with_a_solution_that_was_trained_on_are_counted():
    """Its splits share no solution; hardly a puzzle comes twice."""
    sizes = {"num_train": 400, "num_validation": 50, "num_test": 60}
    before, now = (registry.load_task("sudoku", seed=seed, **sizes) for seed in (0, 1))
    trained = {prompt.fields["solution"] for prompt in before.load("train")}
    counts = {
        split: sum(prompt.fields["solution"] in trained for prompt in now.load(split))
        for split in ("validation", "test")
    }
    assert min(counts.values()) > 0
    assert seen(saved(before), now) == (
        f"the model was trained on the solutions of {counts['validation']} of 50 validation problems and "
        f"{counts['test']} of 60 test problems before (task.seed: 0 then, 1 now)"
    )
    assert seen(saved(before), registry.load_task("sudoku", seed=0, **sizes | {"num_train": 300})) == ""


def test_a_public_file_may_hold_what_was_trained_on(tmp_path: Path):
    task = countdown()
    fields = task.load("train")[0].fields
    file = tmp_path / "test.jsonl"
    rows = [{"numbers": list(fields["numbers"]), "target": fields["target"]}]
    rows += [{"numbers": [1, 1, 1], "target": 3}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = seen(saved(task), countdown(data=file))
    # The file replaces the test problems, so that those that were held out in its place may be seen as well.
    assert re.search(r"\b1 of 2 test problems before \(task.data: not known then, .*test.jsonl now\)", told)


def test_what_cannot_be_told_is_not_said(tmp_path: Path):
    task, known = countdown(seed=1), saved(countdown())
    assert seen({}, task) == ""
    assert seen(known | {"name": "sudoku"}, task) == ""
    assert seen(known | {"of_another_version": 1}, task) == ""
    assert seen(known | {"train_data": str(tmp_path / "gone.jsonl")}, task) == ""
    assert seen(known | {"path": "with_the_model.py"}, task) == ""


def test_models_that_ship_know_what_they_were_trained_on():
    assert saved_task(ModelConfig(init="tiny")) == {}
    assert saved_task(ModelConfig(model_name_or_path="tiny:countdown-sft"))["seed"] == 3
