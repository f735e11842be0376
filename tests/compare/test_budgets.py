"""What is best in so many samples need not be in so many seconds: each budget chooses for itself."""

import json
from pathlib import Path

import pytest

import runs
from egspo.compare.conduct import compare, num_runs
from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan
from egspo.compare.results import Results
from egspo.compare.search import num_trials, search
from egspo.compare.summary import summarise, table
from egspo.compare.worker import pack
from egspo.report.comparison import compose_comparison

TOY = [
    *runs.SETTINGS,
    "optim={learning_rate: 1e-3, lr_scheduler_type: constant}",
    "train={max_steps: 100, prompts_per_step: 4, num_generations: 4}",
    "compare={samples: 1600, seconds: 40, eval_steps: 10, rungs: [0.25]}",
    "compare.grid={train.num_iterations: [3, 1, 2]}",
]


def plan(*given: str) -> Plan:
    settings = [text for text in given if "=" in text]
    return Plan([], [*TOY, *settings], [text for text in given if "=" not in text], {})


def curve(folder: Path, seconds_a_step: float, right: list[int], of: int = 20) -> None:
    """A curve with an evaluation every ten iterations of 16 completions, ``right`` of 20 solved."""
    folder.mkdir(parents=True)
    points = [
        {
            "step": 10 * i,
            "samples": 160 * i,
            "seconds": 10 * i * seconds_a_step,
            "accuracy": count / of,
            "n": of,
            "correct": pack([k < count for k in range(of)]),
            "metrics": {},
        }
        for i, count in enumerate(right)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


def no_run_is_made(run) -> None:
    raise AssertionError(f"{run.label} was run again")


@pytest.fixture
def searched(tmp_path: Path):
    """400 samples and ten seconds of each: the first learns the most a sample, at ten times the cost."""
    curve(tmp_path / "egspo-0", 1.0, [2, 4, 16, 18])
    curve(tmp_path / "egspo-1", 0.1, [2, 6, 8, 8, 9, 9, 9, 9, 9, 7, 9, 1, 1])
    curve(tmp_path / "egspo-2", 0.2, [2, 5, 9, 9, 5, 5])
    return search(plan("egspo"), ["egspo"], tmp_path, Jobs(1), no_run_is_made)


def test_each_budget_chooses_for_itself(searched):
    assert [trial.chosen for trial in searched] == [["samples"], ["seconds"], []]
    # The mean where nine tenths of 400 samples or of ten seconds were spent, and all of them.
    assert [trial.rungs[0]["accuracy"] for trial in searched] == [
        {"samples": 0.9, "seconds": 0.2},
        {"samples": 0.4, "seconds": pytest.approx(0.4)},
        {"samples": 0.45, "seconds": 0.25},
    ]
    # What that cost: 400 samples and ten seconds, whatever the run goes on to.
    assert [trial.rungs[0]["samples"] for trial in searched] == [480, 1600, 800]
    assert [trial.rungs[0]["seconds"] for trial in searched] == [30, 10, 10]


def test_each_budget_is_read_from_the_runs_of_what_it_chose(searched, tmp_path: Path):
    results = Results(tmp_path / "out")
    results.open(plan("egspo"))
    results.add_trials(searched)
    results = Results(tmp_path / "out")
    first, second = results.chosen("egspo")
    assert (first.number, second.number) == (0, 1)
    for seed in (0, 1):
        for trial, step, right in ((first, 1.0, [2] + [16] * 10), (second, 0.1, [2] + [10] * 40)):
            place = tmp_path / "runs" / f"{trial.name}-{seed}"
            curve(place, step, right)
            results.keep(plan("egspo").final("egspo", trial.settings, seed, place, trial.chosen), trial, seed)
    assert num_runs(plan("egspo"), [0, 1], tmp_path / "out") == 0
    assert num_runs(plan("egspo"), [0, 1, 2], tmp_path / "out") == 2
    found = summarise(results, "egspo", ["made"], "the model was trained on 5 of 20 test problems before")
    assert "not of new problems: the model was trained on 5 of 20 test problems before.\n" in table(
        found, "x"
    )
    assert "not of new problems" not in table(found | {"seen": ""}, "x")
    by_kind = {kind: rows["egspo"] for kind, rows in found["budgets"].items()}
    assert {kind: row["mean"] for kind, row in by_kind.items()} == {"samples": 0.8, "seconds": 0.5}
    assert [row["chosen"]["train.num_iterations"] for row in by_kind.values()] == [3, 1]
    assert [row["curve"][-1][kind] for kind, row in by_kind.items()] == [1600, 40]
    # Here the runs of either choice spend both budgets: the other's are told too.
    others = {kind: rows["egspo"] for kind, rows in found["others"].items()}
    assert {kind: row["mean"] for kind, row in others.items()} == {"samples": 0.5, "seconds": 0.8}
    assert [row["difference_to_other"]["mean"] for row in by_kind.values()] == pytest.approx([0.3, -0.3])
    assert "| egspo | 2 | 80.0 | 80.0 to 80.0 | num_iterations 3 |" in table(found, "x")


def test_a_choice_that_did_not_spend_the_other_budget_is_not_read_there(searched, tmp_path: Path):
    results = Results(tmp_path / "out")
    results.open(plan("egspo"))
    results.add_trials(searched)
    for trial, right in zip(results.chosen("egspo"), ([2] + [16] * 10, [2] + [10] * 9), strict=True):
        place = tmp_path / "runs" / trial.name
        curve(place, 5.0, right)
        results.keep(plan("egspo").final("egspo", trial.settings, 0, place, trial.chosen), trial, 0)
    found = summarise(results, "egspo", ["made"])
    # The second ends after 1440 completions, which take far more than its 40 seconds.
    assert found["others"]["samples"] == {} and found["others"]["seconds"]["egspo"]["mean"] == 0.8
    text = table(found, "x")
    assert text.count("What the search chose for the other budget alone") == 1
    assert "difference_to_other" not in found["budgets"]["samples"]["egspo"]


def test_what_a_slow_candidate_spends_too_early_is_seen_too(tmp_path: Path):
    """It may spend a later rung's seconds on this rung's samples, and is evaluated there all the same."""
    made = plan("egspo", "compare.rungs=[0.25, 1.0]")
    for rung in (0.25, 1.0):
        run = made.trial("egspo", {}, rung, tmp_path, ["samples"])
        assert run.marks["seconds"] == [9.0, 10.0, 36.0, 40.0]
        assert run.marks["samples"] == [360.0, 400.0, 1440.0, 1600.0]
    assert made.final("egspo", {}, 0, tmp_path, ["samples"]).marks == {"samples": [1600], "seconds": [40]}


def test_a_candidate_that_diverges_keeps_what_it_had_reached(tmp_path: Path):
    curve(tmp_path / "egspo-0", 0.1, [2, 4, 16, 18])
    (tmp_path / "egspo-0" / "diverged").write_text("FloatingPointError")
    curve(tmp_path / "egspo-1", 1.0, [2, 4, 6, 8])
    curve(tmp_path / "egspo-2", 1.0, [2, 3, 6, 8])
    found = search(plan("egspo"), ["egspo"], tmp_path, Jobs(1), no_run_is_made)
    assert found[0].rungs[0]["accuracy"] == {"samples": 0.9, "seconds": None}
    assert [trial.chosen for trial in found] == [["samples"], ["seconds"], []]


def test_two_budgets_that_choose_differently_have_a_run_each(tmp_path: Path):
    """Through the command's own way, one run at a time: the table is made when one budget has none yet."""
    few = ["train={max_steps: 1, prompts_per_step: 4, num_generations: 4, num_iterations: 1}"]
    few += [
        "compare={samples: 64, seconds: 0.4, eval_steps: 2, rungs: [1.0]}",
        "compare.grid={optim.learning_rate: [1e-3, 2e-3]}",
    ]
    made = Plan([], [*TOY[:5], *few], ["egspo"], {})
    curve(tmp_path / "work" / "search" / "egspo-0", 0.01, [2, 5, 5, 5, 12])
    curve(tmp_path / "work" / "search" / "egspo-1", 0.2, [2, 9])
    text = compare(made, [0], tmp_path, 1, "egspo", "made")
    chosen = {trial.number: trial.chosen for trial in Results(tmp_path).trials}
    assert chosen == {0: ["seconds"], 1: ["samples"]}
    assert {
        str(file.relative_to(tmp_path / "curves")) for file in (tmp_path / "curves").rglob("*.jsonl")
    } == {
        "egspo/candidate-0/seed-0.jsonl",
        "egspo/candidate-1/seed-0.jsonl",
    }
    assert "## At 64 samples a run" in text and "## At 0.4 processor seconds a run" in text
    assert "learning_rate 0.001" in text and "learning_rate 0.002" in text


def test_a_comparison_tells_how_often_it_trains(tmp_path: Path):
    made = plan("egspo", "wd1")
    assert num_trials(made, "egspo") == 3
    # At most: two methods, each three candidates, of which two may be chosen, by two seeds.
    assert num_runs(made, [0, 1], tmp_path) == 2 * (3 + 2 * 2)
    made.config.rungs = [0.25, 0.5, 1.0]
    assert num_trials(made, "egspo") == 3  # a single one of each budget is left after the first rung
    made.config.keep = 0.7
    assert num_trials(made, "egspo") == 3 + 3  # two of each budget may be all three; then one is left


def test_finalists_alone_are_corrected_for(searched, tmp_path: Path):
    """A method that was screened with fewer seeds has its interval and no p."""
    results = Results(tmp_path / "out")
    labels = ["egspo", "wd1", "spg", "espo"]
    results.open(plan(*labels))
    for label, seeds in zip(labels, (5, 5, 5, 3), strict=True):
        for trial in searched[:1]:
            copy = type(trial)(label, 0, trial.settings, trial.rungs, ["samples", "seconds"])
            results.add_trials([copy])
            for seed in range(seeds):
                place = tmp_path / "runs" / f"{label}-{seed}"
                curve(place, 0.5, [2] + [10 + (seed * len(label)) % 7] * 10)
                results.keep(plan(*labels).final(label, {}, seed, place), copy, seed)
    rows = summarise(results, "egspo", ["made"])["budgets"]["samples"]
    p = {label: (row["difference"]["p"], row["difference"]["p_holm"]) for label, row in rows.items()}
    assert p["espo"][0] is not None and p["espo"][1] is None
    low, high = sorted(p[label] for label in ("wd1", "spg"))
    assert low[1] == min(1.0, 2 * low[0]) and high[1] >= high[0]


def test_all_are_told_how_far_they_are_behind_the_best(searched, tmp_path: Path):
    """Also where two methods are both ahead of the one that all are compared to."""
    results = Results(tmp_path / "out")
    rights = {"egspo": [8, 8], "wd1": [12, 14], "spg": [10, 12]}
    results.open(plan(*rights))
    for label, ends in rights.items():
        trial = type(searched[0])(label, 0, {}, [], ["samples", "seconds"])
        results.add_trials([trial])
        for seed, end in enumerate(ends):
            place = tmp_path / "runs" / f"{label}-{seed}"
            curve(place, 0.5, [2] + [end] * 10)
            results.keep(plan(*rights).final(label, {}, seed, place), trial, seed)
    found = summarise(results, "egspo", ["made"])
    rows = found["budgets"]["samples"]
    assert list(rows) == ["wd1", "spg", "egspo"]
    to_best = {label: row.get("difference_to_best", {}).get("mean") for label, row in rows.items()}
    assert to_best == {"wd1": None, "spg": pytest.approx(-0.1), "egspo": pytest.approx(-0.25)}
    low, high = rows["spg"]["difference_to_best"]["ci95"]
    assert low < -0.1 < high
    assert table(found, "x").count("| to the best, `wd1` |") == 2  # once a budget
    page = compose_comparison("x", found)
    assert '<th class="number">To the best, wd1</th>' in page and ">-25.0 <small>[" in page
    # Where the baseline is the best, its own column says it all.
    found = summarise(results, "wd1", ["made"])
    assert "to the best" not in table(found, "x") and "To the best" not in compose_comparison("x", found)


def test_the_search_of_an_earlier_version_is_not_taken_for_both_budgets(tmp_path: Path):
    row = {"label": "egspo", "number": 0, "settings": {}, "rungs": [], "chosen": True}
    (tmp_path / "search.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"the search in .* is of an earlier version and knew one budget"):
        compare(plan("egspo"), [0], tmp_path, 1, "egspo", "made")
