"""A folder grows on several machines: budgets in seconds stay those of the first."""

import json
from pathlib import Path

import pytest

import runs
from egspo.compare.conduct import compare
from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan
from egspo.compare.results import SLOWDOWN, Results
from egspo.compare.speed import slowdown
from egspo.compare.worker import read_curve

TOY = [
    *runs.SETTINGS,
    "optim={learning_rate: 1e-3, lr_scheduler_type: constant}",
    "train={max_steps: 100, prompts_per_step: 4, num_generations: 4}",
    "compare={samples: 96, seconds: 0.01, eval_steps: 3, grid: {}}",
]
FASTER = 20


def made(folder: Path, seeds: list[int], label: str = "egspo") -> str:
    plan = Plan([], TOY, [label], {})
    return compare(plan, seeds, folder, 2, "egspo", f"made {label} {seeds}")


def curve(folder: Path, seed: int, label: str = "egspo") -> list[dict]:
    return read_curve(folder / "curves" / label / "candidate-0" / f"seed-{seed}.jsonl")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that a machine began that was many times as fast as this one."""
    made(tmp_path, [0])
    file = tmp_path / "curves" / "egspo" / "candidate-0" / "seed-0.jsonl"
    points = [point | {"seconds": point["seconds"] / FASTER} for point in read_curve(file)]
    file.write_text("".join(json.dumps(point) + "\n" for point in points))
    return tmp_path


def told(folder: Path) -> list[tuple[str, list[float]]]:
    """Each command with what seconds were divided by."""
    commands = json.loads((folder / "comparison.json").read_text())["commands"]
    parts = [command.partition(SLOWDOWN) for command in commands]
    return [(name, [float(divisor) for divisor in told.split(", ") if told]) for name, _, told in parts]


def test_seconds_of_a_slower_machine_are_those_of_the_first(elsewhere: Path):
    text = made(elsewhere, [0, 1])
    (first, of_first), (second, (of_second,)) = told(elsewhere)
    assert (first, of_first, second) == ("made egspo [0]", [], "made egspo [0, 1]")
    assert FASTER / 4 < of_second < FASTER * 4
    # The same iterations, by the same clock, but for the noise of so short runs.
    ours, theirs = (curve(elsewhere, seed)[-1]["seconds"] for seed in (1, 0))
    assert theirs / 4 < ours < theirs * 4
    assert (
        f"made egspo [0, 1]{SLOWDOWN}{of_second:.2f}" in text and "Seconds are those of the machine" in text
    )
    assert not (elsewhere / "work" / "speed").exists()


def test_a_command_that_goes_on_keeps_its_place_and_what_was_measured(tmp_path: Path):
    results = Results(tmp_path)

    def told(command: str, slowdown: float | None) -> list[str]:
        commands = results.commands(command, slowdown)
        (tmp_path / "comparison.json").write_text(json.dumps({"commands": commands}))
        return commands

    assert told("a", None) == ["a"]
    assert told("b", 1.5) == ["a", f"b{SLOWDOWN}1.50"]
    assert told("b", 0.9) == ["a", f"b{SLOWDOWN}1.50, 0.90"]
    assert told("a", None)[0] == "a"
    assert told("a", 2.0) == [f"a{SLOWDOWN}1.00, 2.00", f"b{SLOWDOWN}1.50, 0.90"]
    # What was measured without a command that is told was left by this one.
    (tmp_path / "comparison.json").unlink()
    assert told("a", 2.0) == [f"a{SLOWDOWN}1.00, 2.00"]


def test_what_an_ended_command_left_is_measured_before_any_run_is_kept(tmp_path: Path):
    plan, place = Plan([], TOY, ["egspo"], {}), tmp_path / "work" / "search" / "egspo-0"
    Jobs(1).run([plan.trial("egspo", {}, 1.0, place)], lambda run: None)
    points = [point | {"seconds": point["seconds"] / FASTER} for point in read_curve(place / "curve.jsonl")]
    (place / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    results = Results(tmp_path)
    results.open(plan)
    assert FASTER / 4 < slowdown(plan, results, "egspo", Jobs(2)) < FASTER * 4
    assert not (tmp_path / "work" / "speed").exists()
    (place / "diverged").touch()
    assert slowdown(plan, results, "egspo", Jobs(2)) is None


def test_another_method_is_measured_by_the_one_that_is_there(elsewhere: Path):
    made(elsewhere, [0], "wd1")
    assert told(elsewhere)[-1][0] == "made wd1 [0]" and told(elsewhere)[-1][1][0] > FASTER / 4
    end = curve(elsewhere, 0, "wd1")[-1]
    assert end["samples"] >= 96 and end["seconds"] >= 0.01


def test_nothing_is_measured_where_nothing_is_run(elsewhere: Path, monkeypatch):
    made(elsewhere, [0, 1])
    before = told(elsewhere)
    monkeypatch.setattr("egspo.compare.conduct.slowdown", None)
    made(elsewhere, [0, 1])
    assert told(elsewhere) == before
    assert Results(elsewhere).labels == ["egspo"]
