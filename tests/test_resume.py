"""A run that is killed at any point and called again ends as if nothing had happened, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import runs
from egspo.checkpoint import Checkpoints
from egspo.sft import SFTTrainer
from egspo.tracking import RunFolder

# All that has a memory: moments of the optimizer, a schedule, a reference, the best model so far, counters.
RL_SETTINGS = (
    "train.num_iterations=2",
    "train.eval_steps=4",
    "train.load_best_model_at_end=true",
    "objective.beta=0.05",
    "optim.lr_scheduler_type=linear",
    "optim.warmup_steps=10",
    "eval.limit=5",
)
SFT_SETTINGS = ("sft.eval_steps=25", "optim.lr_scheduler_type=cosine", "eval.limit=5")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder)
    return folder / "model"


class Crash(Exception):
    pass


def crash_at(step: int):
    def callback(trainer, row) -> None:
        if row["step"] == step:
            raise Crash

    return callback


def assert_same_run(left: Path, right: Path) -> None:
    """The same files with the same contents, but for clocks."""
    names = [
        {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} for folder in (left, right)
    ]
    assert names[0] == names[1]
    assert runs.timeless(runs.rows(left)) == runs.timeless(runs.rows(right))
    for name in names[0] - {"metrics.jsonl", "config.json"}:
        one, other = (left / name).read_bytes(), (right / name).read_bytes()
        # The pickled optimizer holds the same numbers, but its archive need not have the same bytes.
        assert one == other or name.endswith("trainer.pt"), name


# ---- a real kill of a real process ---------------------------------------------------------------------


def kill_in_the_middle(command: list[str], folder: Path, save_steps: int) -> None:
    """Run a command until iterations stand in its metrics that no checkpoint holds, then kill it.

    The process is stopped while the files are looked at, so that it cannot go on past the moment.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            lines = _lines(folder)
            if lines > save_steps and lines % save_steps >= 2:
                process.send_signal(signal.SIGSTOP)
                saved = Checkpoints(folder / "checkpoints", 1).steps()
                if saved and _lines(folder) > saved[-1] + 1:
                    return
                process.send_signal(signal.SIGCONT)
            time.sleep(0.005)
        pytest.fail("no checkpoint in time")
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL


def _lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def command(kind: str, config, folder: Path, tmp_path: Path) -> list[str]:
    """``python -m egspo KIND`` with a file of settings."""
    file = tmp_path / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(runs.json.loads(config.model_dump_json())), encoding="utf-8")
    return [sys.executable, "-m", "egspo", kind, str(file), f"output_dir={folder}"]


@pytest.mark.timeout(600)
def test_a_killed_run_goes_on(base: Path, tmp_path: Path):
    settings = (*runs.from_base(base), *RL_SETTINGS, "train.max_steps=40", "train.save_steps=10")
    runs.trainer(tmp_path / "whole", *settings).train()
    call = command("train", runs.rl_config(tmp_path, *settings), tmp_path / "killed", tmp_path)
    kill_in_the_middle(call, tmp_path / "killed", save_steps=10)
    subprocess.run(call, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_sft_goes_on(tmp_path: Path):
    settings = (*SFT_SETTINGS, "sft.max_steps=100", "sft.save_steps=25")
    runs.sft(tmp_path / "whole", *settings)
    call = command("sft", runs.sft_config(tmp_path, *settings), tmp_path / "killed", tmp_path)
    kill_in_the_middle(call, tmp_path / "killed", save_steps=25)
    subprocess.run(call, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# ---- the same in one process, wherever the crash comes -------------------------------------------------


# What was kept of earlier rollouts is a memory too.
REPLAYING = (
    "objective.name=sure",
    "objective.beta=0",
    "objective.num_replayed=6",
    "objective.min_reward=0.5",
)


@pytest.fixture(
    scope="module",
    params=[("model.use_peft=false",), ("model.use_peft=true",), REPLAYING],
    ids=["full", "lora", "replay"],
)
def whole(request, base: Path, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """A run that nothing interrupted, and its settings."""
    lengths = ("train.max_steps=8", "train.save_steps=3")
    settings = (*runs.from_base(base), *RL_SETTINGS, *lengths, *request.param)
    folder = tmp_path_factory.mktemp("whole")
    runs.trainer(folder, *settings).train()
    return folder, settings


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_crash_at_any_iteration(whole: tuple[Path, tuple[str, ...]], tmp_path: Path, step: int):
    """Before the first checkpoint (3), when one is due (the callback comes before it), and in between."""
    folder, settings = whole
    with pytest.raises(Crash):
        runs.trainer(tmp_path, *settings, callbacks=[crash_at(step)]).train()
    assert len(runs.rows(tmp_path)) == step
    # A line that the crash cut in two, and one that somebody else wrote.
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('null\n{"step": 4, "ti')
    runs.trainer(tmp_path, *settings).train()
    assert_same_run(folder, tmp_path)


@pytest.mark.parametrize("step", [4, 5, 8])
def test_a_crash_of_sft_at_any_step(tmp_path: Path, step: int, monkeypatch):
    settings = ("sft.max_steps=10", "sft.save_steps=4", *SFT_SETTINGS, "sft.eval_steps=5", "sft.batch_size=8")
    runs.sft(tmp_path / "whole", *settings)
    real = SFTTrainer._step

    def crash(self, index: int) -> dict:
        if index == step:
            raise Crash
        return real(self, index)

    monkeypatch.setattr(SFTTrainer, "_step", crash)
    with pytest.raises(Crash):
        runs.sft(tmp_path / "crashed", *settings)
    monkeypatch.undo()
    runs.sft(tmp_path / "crashed", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_time_goes_on_where_it_stopped(base: Path, tmp_path: Path):
    settings = (*runs.from_base(base), "train.max_steps=4", "train.save_steps=2")
    with pytest.raises(Crash):
        runs.trainer(tmp_path, *settings, callbacks=[crash_at(3)]).train()
    saved = runs.rows(tmp_path)[1]["time"]
    time.sleep(0.2)
    began = time.monotonic()
    rows = runs.train(tmp_path, *settings)
    assert saved < rows[2]["time"] < saved + time.monotonic() - began


def test_the_best_model_of_a_checkpoint_survives_later_validations(base: Path, tmp_path: Path, monkeypatch):
    """On hardware where a second run is not the same run, a later best may not come again.

    Validations score 0.9 at iterations 1 and 2, then 0.95 at 3, and the run crashes; the second time
    iteration 3 scores 0.1. The best model is that of iteration 1, the first of equals, which iteration 3 had
    overwritten.
    """
    scores = {1: 0.9, 2: 0.9, 3: 0.95, 4: 0.1}
    monkeypatch.setattr("egspo.trainer.validate", lambda *arguments: scores[arguments[3]])
    settings = (
        *runs.from_base(base),
        *(
            "train.max_steps=4",
            "train.save_steps=2",
            "train.eval_steps=1",
            "train.load_best_model_at_end=true",
        ),
    )
    kept = {}

    def keep(trainer, row) -> None:
        kept.setdefault(row["step"], runs.weights(trainer.policy))
        crash_at(4)(trainer, row)

    with pytest.raises(Crash):
        runs.trainer(tmp_path, *settings, callbacks=[keep]).train()
    scores[3] = 0.1
    trainer = runs.trainer(tmp_path, *settings)
    trainer.train()
    assert trainer.best == {"accuracy": 0.9, "step": 1}
    for name, value in runs.weights(trainer.policy).items():
        assert value.equal(kept[1][name])
        assert not value.equal(kept[3][name])


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(base: Path, tmp_path: Path, monkeypatch):
    settings = (*runs.from_base(base), "train.max_steps=4", "train.save_steps=2")
    runs.trainer(tmp_path / "whole", *settings).train()
    real = os.replace

    def fail_at_the_last(source, target) -> None:
        if str(target).endswith("step-000004"):
            raise Crash
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_last)
    with pytest.raises(Crash):
        runs.trainer(tmp_path / "crashed", *settings).train()
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "crashed" / "checkpoints", 2).steps() == [2]
    runs.trainer(tmp_path / "crashed", *settings).train()
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


# ---- which command may go on in a folder ---------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(tmp_path: Path):
    arguments = ["train", "debug/toy", f"output_dir={tmp_path}", "train.max_steps=2", "train.eval_steps=2"]
    assert runs.egspo(*arguments).code == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert runs.egspo(*arguments).code == 0
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_folder_belongs_to_one_configuration(tmp_path: Path):
    arguments = ["train", "debug/toy", f"output_dir={tmp_path}", "train.max_steps=1", "train.eval_steps=0"]
    assert runs.egspo(*arguments).code == 0
    before = (tmp_path / "metrics.jsonl").read_bytes()
    ended = runs.egspo(*arguments, "optim.learning_rate=0.5", "seed=3")
    assert ended.code == 2
    assert ended.err == (
        f"egspo: output_dir: {tmp_path} holds a run of another configuration "
        "(differs in optim.learning_rate, seed); choose another folder or the same settings\n"
    )
    ended = runs.egspo(*arguments, "resume=false")
    assert ended.code == 2
    assert ended.err == (
        f"egspo: output_dir: {tmp_path} holds a run already and resume is False; "
        "choose another folder, or drop resume=false to go on with it\n"
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    # Where it reports to may change.
    assert runs.egspo(*arguments, "tracking.run_name=other").code == 0


def test_resume_off_is_no_hindrance_in_a_fresh_folder(tmp_path: Path):
    settings = ["train.max_steps=1", "train.eval_steps=0", "resume=false"]
    assert runs.egspo("train", "debug/toy", f"output_dir={tmp_path / 'new'}", *settings).code == 0


def test_a_broken_configuration_in_the_folder_is_told(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"seed": ', encoding="utf-8")
    trainer = runs.trainer(tmp_path)
    with pytest.raises(ValueError, match=f"^output_dir: {tmp_path}/config.json is not JSON"):
        trainer.train()


def test_lines_after_the_checkpoint_are_dropped_and_foreign_ones_too(tmp_path: Path):
    folder = RunFolder(tmp_path, runs.trainer(tmp_path).accelerator)
    lines = ['{"step": 1, "time": 2.5}', '{"step": 2, "time": 5.0}', "[1]", "7", '{"step": 3, "time"', ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert folder.rewind(2) == 5.0
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:2]) + "\n"
    assert folder.rewind(0) == 0.0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_of_an_earlier_version_goes_on(base: Path, tmp_path: Path):
    """Its configuration and its checkpoint lack what came later; that has its default."""
    settings = (*runs.from_base(base), "train.save_steps=2")
    runs.trainer(tmp_path / "whole", *settings, "train.max_steps=4").train()
    with pytest.raises(Crash):
        crash = [crash_at(3)]
        runs.trainer(tmp_path / "old", *settings, "train.max_steps=4", callbacks=crash).train()
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    del config["sampler"]["score_positions"]
    file.write_text(json.dumps(config))
    checkpoint = tmp_path / "old" / "checkpoints" / "step-000002" / "trainer.pt"
    saved = torch.load(checkpoint, weights_only=True)
    del saved["state"]["replay"]
    torch.save(saved, checkpoint)
    runs.trainer(tmp_path / "old", *settings, "train.max_steps=4").train()
    assert_same_run(tmp_path / "whole", tmp_path / "old")
