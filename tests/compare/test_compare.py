"""Whole comparisons on the toy task, by the command; a run is a second or two."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import runs
from egspo.compare import RunFailed, worker
from egspo.compare.jobs import Jobs
from egspo.compare.plan import Plan
from egspo.compare.results import Results, alone
from egspo.compare.search import Trial, _best, _kept
from egspo.compare.summary import summarise, table
from egspo.compare.worker import pack, read_curve, unpack

TOY = [
    *runs.SETTINGS,
    "optim.learning_rate=3e-3",
    "train={max_steps: 4, prompts_per_step: 8, num_generations: 8}",
    "compare.eval_steps=1",
    "compare.rungs=[1.0]",
]
# A rate at which weights become infinite at once, and one that is sane.
GRID = "compare.grid={optim.learning_rate: [1e30, 3e-3]}"


def compare(out: Path, *options: str) -> runs.Ended:
    return runs.egspo("compare", *TOY, GRID, "--out", str(out), "--jobs", "2", *options)


def points(out: Path, label: str, seed: int) -> list[dict]:
    """Of the only candidate that was chosen."""
    (file,) = (out / "curves" / label).glob(f"*/seed-{seed}.jsonl")
    return read_curve(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "toy"
    ended = compare(out, "--objectives", "egspo,wd1", "--seeds", "0-1")
    assert ended.code == 0, ended
    assert "| wd1 | 2 |" in ended.out and "report:" in ended.out, ended.out
    return out


def test_the_search_is_kept_and_what_diverged_is_not_chosen(made: Path):
    trials = json.loads((made / "search.json").read_text())
    assert [(t["label"], t["settings"], t["chosen"]) for t in trials] == [
        (label, {"optim.learning_rate": rate}, ["samples"] if rate < 1 else [])
        for label in ("egspo", "wd1")
        for rate in (1e30, 3e-3)
    ]
    assert [t["rungs"][0]["accuracy"]["samples"] is None for t in trials] == [True, False] * 2


def test_runs_share_the_base_and_the_problems(made: Path):
    curves = {label: points(made, label, 0) for label in ("egspo", "wd1")}
    for rows in curves.values():
        assert [row["samples"] for row in rows] == [0, 64, 128, 192, 256]
        for row in rows:
            assert row["accuracy"] == sum(unpack(row["correct"])) / row["n"]
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert curves["egspo"][0]["correct"] == curves["wd1"][0]["correct"]
    # The first rollout batch is drawn from the same policy, prompts and seeds.
    first = [rows[1]["metrics"]["reward/mean"] for rows in curves.values()]
    assert first[0] == first[1]


def test_the_table_is_that_of_the_curves(made: Path):
    found = json.loads((made / "comparison.json").read_text())
    row = found["budgets"]["samples"]["wd1"]
    last = {seed: points(made, "wd1", seed)[-1] for seed in (0, 1)}
    base = {seed: points(made, "egspo", seed)[-1] for seed in (0, 1)}
    assert row["by_seed"] == {str(seed): point["accuracy"] for seed, point in last.items()}
    gaps = [last[seed]["accuracy"] - base[seed]["accuracy"] for seed in (0, 1)]
    assert row["difference"]["mean"] == pytest.approx(sum(gaps) / 2)
    assert row["difference"]["p_holm"] == row["difference"]["p"]  # one method beside the baseline
    assert found["against"] == "egspo" and list(found["budgets"]) == ["samples"]
    page = (made / "report.html").read_text()
    assert "Accuracy by samples" in page and "wd1" in page and "://" not in page


def test_a_finished_comparison_runs_nothing_and_grows_by_seeds_and_methods(made: Path, tmp_path: Path):
    out = tmp_path / "toy"
    shutil.copytree(made, out)
    shutil.rmtree(out / "work")  # results alone suffice
    before = {file: file.read_bytes() for file in (out / "curves").rglob("*.jsonl")}
    ended = compare(out, "--objectives", "egspo,wd1", "--seeds", "0-1", "--dry-run")
    assert "runs: 0 to make" in ended.out
    ended = compare(out, "--objectives", "egspo,spg", "--seeds", "0")
    assert ended.code == 0 and "| spg | 1 |" in ended.out and "| wd1 | 2 |" in ended.out
    assert before == {file: file.read_bytes() for file in before}


def test_other_settings_do_not_fit_into_the_folder(made: Path):
    for options, field in (
        (["eval.batch_size=7"], "base.eval"),
        (["--budget", "samples=128"], "budget.samples"),
    ):
        ended = compare(made, "--objectives", "egspo", "--seeds", "0", "--dry-run", *options)
        assert ended.code == 2 and "holds a comparison with other settings" in ended.err
        assert field in ended.err, ended.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("compare.methods.x.task={seed: 9}", "x: task.seed: 9 is not the 0 of"),
        (
            "compare.methods.x.train={prompts_per_step: 16}",
            "8 prompts of 8 completions are not the 128 samples",
        ),
        ("compare.own_grid.x={objective.psi: [1.0, 2.0]}", "candidates differ in number"),
    ],
)
def test_a_later_method_has_no_better_deal_than_those_in_the_folder(settings, words, made: Path):
    options = ["--budget", "samples=256", "compare.methods.x={objective: {name: wd1}}", settings]
    ended = compare(made, "--objectives", "x", "--seeds", "0", "--dry-run", *options)
    assert ended.code == 2 and words in ended.err, ended


def test_a_command_that_failed_before_any_result_may_be_corrected(made: Path, tmp_path: Path):
    out = tmp_path / "toy"
    ended = compare(
        out, "--objectives", "egspo", "--seeds", "0", "model={init: null, model_name_or_path: /etc}"
    )
    assert ended.code == 2 and "egspo: " in ended.err and not out.exists(), ended
    plan = shutil.copytree(made, out, ignore=lambda *_: {"curves", "search.json", "work"}) / "plan.json"
    failed = out / "work" / "search" / "egspo-0"
    failed.mkdir(parents=True)
    (failed / "config.json").write_text("{}")
    plan.write_text(plan.read_text().replace('"objective"', '"objection"'))
    ended = compare(out, "--objectives", "egspo", "--seeds", "0", "--no-search", "eval.batch_size=7")
    assert ended.code == 0 and not failed.exists(), ended
    assert list(json.loads(plan.read_text())["methods"]) == ["egspo"]


def test_two_commands_do_not_work_in_one_folder(made: Path):
    with alone(made):
        ended = compare(made, "--objectives", "egspo,wd1", "--seeds", "0-1")
    assert ended.code == 2 and "is in use by another egspo compare" in ended.err


def test_the_table_tells_how_was_decoded_and_by_which_clock(made: Path, tmp_path: Path):
    found = json.loads((made / "comparison.json").read_text())
    assert found["units"]["seconds"] == "processor seconds" and "Greedy accuracy on" in table(found, "toy")
    found["plan"]["shared"]["base"]["eval"] = {"temperature": 0.7}
    assert "Accuracy at temperature 0.7 on" in table(found, "toy")
    out = shutil.copytree(made, tmp_path / "toy")
    for file in (out / "curves").rglob("*.jsonl"):
        file.write_text(file.read_text().replace('"clock": "processor"', '"clock": "wall"'))
    assert summarise(Results(out), "egspo", [])["units"]["seconds"] == "seconds"


def test_settings_of_a_later_version_fit_in_by_their_defaults(made: Path, tmp_path: Path):
    """What the folder knows nothing of had its default; another value makes another method."""
    file = shutil.copytree(made, tmp_path / "toy", ignore=shutil.ignore_patterns("work")) / "plan.json"
    plan = json.loads(file.read_text())
    resolved = plan["methods"]["egspo"]["resolved"]
    del resolved["sampler"]["early_stop"], resolved["objective"]["kl"]
    file.write_text(json.dumps(plan))
    command = (file.parent, "--objectives", "egspo", "--seeds", "0-1", "--dry-run")
    assert "runs: 0 to make" in compare(*command).out
    resolved["sampler"]["early_stop"] = False
    file.write_text(json.dumps(plan))
    ended = compare(*command)
    assert ended.code == 2 and "egspo: resolved.sampler.early_stop" in ended.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "1000"], "--seeds: 1000 is compare.search_seed"),
        (["--against", "spg"], "--against: 'spg' is not compared; known: egspo"),
        (["--seeds", "0-2,2-4"], "--seeds: '0-2,2-4' has a number twice"),
        (["--budget", "hours=1"], "--budget: 'hours=1'; give samples=N or seconds=S"),
    ],
)
def test_wrong_options(options, words, tmp_path: Path):
    ended = compare(tmp_path, "--objectives", "egspo", *options)
    assert ended.code == 2 and words in ended.err


def start(folder: Path, samples: int, seconds: float | None = None, **settings) -> list[dict]:
    """One run in this process, up to a budget; 64 samples an iteration."""
    overrides = [*TOY, *(f"{key}={value}" for key, value in settings.items())]
    plan = Plan([], overrides, ["egspo"], {"seconds": seconds} if seconds else {}, with_search=False)
    run = plan.final("egspo", {}, 0, folder)
    folder.mkdir(parents=True, exist_ok=True)
    to = {"limits": run.limits | {"samples": samples}, "marks": run.marks | {"samples": [samples]}}
    (folder / "run.json").write_text(json.dumps({**vars(run), **to}))
    worker.train(folder)
    return read_curve(folder / "curve.jsonl")


def timeless(curve: list[dict]) -> list[tuple]:
    return [(p["step"], p["samples"], p["correct"], p["metrics"].get("reward/mean")) for p in curve]


def test_a_run_that_goes_on_has_the_curve_of_one_that_was_never_stopped(tmp_path: Path):
    whole = start(tmp_path / "whole", 256)
    part = start(tmp_path / "parts", 128)
    assert timeless(part) == timeless(whole)[:3]
    # What a kill leaves behind: an evaluation whose checkpoint was not written yet.
    broken = [*part, {**part[-1], "step": 3, "seconds": 1e9}]
    (tmp_path / "parts" / "curve.jsonl").write_text("".join(json.dumps(p) + "\n" for p in broken))
    going_on = start(tmp_path / "parts", 256)
    assert timeless(going_on) == timeless(whole)
    assert going_on[2]["seconds"] < going_on[3]["seconds"] < 1e9


def test_budgets_are_read_where_they_are_spent(tmp_path: Path):
    settings = {"optim.lr_scheduler_type": "constant", "compare.eval_steps": 1000}
    curve = start(tmp_path, 64, 1.0, **settings)
    assert [point["samples"] for point in curve[:2]] == [0, 64] and len(curve) == 3
    assert curve[1]["seconds"] < 1.0 <= curve[2]["seconds"] < 3


def test_training_is_that_of_egspo_train(tmp_path: Path):
    curve = start(tmp_path / "compared", 256)
    same = ["train={max_steps: 4, prompts_per_step: 8, num_generations: 8}", "optim.learning_rate=3e-3"]
    trainer = runs.trainer(tmp_path / "alone", *same)
    trainer.train()
    rewards = [row["reward/mean"] for row in runs.rows(tmp_path / "alone")]
    assert [point["metrics"]["reward/mean"] for point in curve[1:]] == rewards


@pytest.mark.parametrize("run_began", [False, True], ids=["at once", "later"])
def test_a_killed_comparison_leaves_no_process_and_goes_on(tmp_path: Path, run_began: bool):
    arguments = [*TOY, "train.max_steps=60", "--objectives", "egspo", "--seeds", "0", "--no-search"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert runs.egspo("compare", *arguments, "--out", str(whole)).code == 0
    command = [sys.executable, "-m", "egspo", "compare", *arguments, "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curve = killed / "work/runs/egspo-0-0/curve.jsonl"
    if run_began:
        assert within(60, lambda: len(read_curve(curve)) > 3), "the run began"
    else:
        assert within(60, lambda: any("compare.worker" in line for line in workers_in(killed))), "it started"
    process.kill()
    process.wait()
    assert within(20, lambda: not workers_in(killed)), "its worker ended with it"
    assert len(read_curve(curve)) < len(points(whole, "egspo", 0))
    assert not (killed / "curves").exists()
    assert runs.egspo("compare", *arguments, "--out", str(killed)).code == 0
    assert timeless(points(killed, "egspo", 0)) == timeless(points(whole, "egspo", 0))


def within(seconds: float, what) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not what():
        time.sleep(0.05)
    return what()


def workers_in(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            found.append(path.read_bytes().decode())
    return [line for line in found if str(folder) in line]


def test_a_run_that_fails_ends_the_comparison_with_its_last_words(tmp_path: Path):
    plan = Plan([], TOY, ["egspo"], {}, with_search=False)
    run = plan.final(
        "egspo", {"model.model_name_or_path": "tiny:none", "model.init": None}, 0, tmp_path / "run"
    )
    with pytest.raises(RunFailed, match=r"egspo: its run failed: .*no shipped model 'tiny:none'"):
        Jobs(2).run([run], lambda run: None)


def test_verdicts_are_packed_without_loss():
    generator = torch.Generator().manual_seed(0)
    for n in (0, 1, 7, 500):
        verdicts = (torch.rand(n, generator=generator) < 0.5).tolist()
        assert unpack(pack(verdicts)) == verdicts


def test_the_best_third_goes_on_and_the_first_of_equals():
    def trial(number: int, accuracy: float | None) -> Trial:
        return Trial("a", number, {}, [{"accuracy": {"samples": accuracy, "seconds": 0.5}}])

    rows = [trial(0, None), trial(1, 0.2), trial(2, 0.5), trial(3, 0.5), trial(4, 0.0), trial(5, 0.1)]
    assert [t.number for t in _best(rows, 0, "samples", 1 / 3)] == [2, 3]
    assert [t.number for t in _best(rows, 0, "seconds", 1 / 3)] == [0, 1]
    assert [_kept(count, 1 / 3) for count in (1, 2, 3, 5, 6, 9)] == [1, 1, 1, 1, 2, 3]
