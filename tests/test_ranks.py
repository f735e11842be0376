"""Two ranks give the curve of one: samples, rewards and validations are the same, sums agree to rounding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import runs
from egspo.config import BaseRun
from egspo.sharing import Sharing
from models.test_masked_lm import save_model

TOLERANCE = 1e-5
# Adam divides a gradient by its own size: with a small epsilon it makes whole steps out of rounding.
SMOOTH = "optim.adam_epsilon=1e-4"
# Few canvases a forward pass, so that ranks have different numbers of microbatches.
FULL = (
    *("objective.beta=0.05", "train.updates_per_rollout=2", "train.microbatch_size=3", "train.max_steps=4"),
    *("train.eval_steps=2", "train.load_best_model_at_end=true", "eval.limit=7"),
)
ADAPTED = (
    *("model.use_peft=true", "train.update_split=steps", "train.updates_per_rollout=2", "train.max_steps=4"),
    *("objective.baseline=same_rank", "optim.learning_rate=5e-3"),
)
# A group a rank, and rewards of finished completions alone: an iteration in which those of one group are
# equal leaves that rank without a single active sample.
IDLE = (
    *("train.prompts_per_step=2", "train.num_generations=2", "train.max_steps=12"),
    *("objective.step_advantage_weight=0", "sampler.temperature=0.7"),
)
SHUFFLED = ("train.permute_rewards=true", "train.updates_per_rollout=2", "objective.baseline=batch")
REPLAYED = (
    *("objective.name=sure", "objective.num_replayed=5", "objective.min_reward=0.5"),
    *("train.updates_per_rollout=2", "train.max_steps=4", "train.microbatch_size=2"),
)
SFT = (SMOOTH, "sft.max_steps=20", "sft.batch_size=9", "sft.eval_steps=10", "eval.limit=7")
NAMES = ("adapted", "idle", "shuffled", "replayed", "sft")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder)
    return folder / "model"


def rl_settings(name: str, base: Path) -> tuple[str, ...]:
    settings = {"full": FULL, "adapted": ADAPTED, "idle": IDLE, "shuffled": SHUFFLED, "replayed": REPLAYED}[
        name
    ]
    return (*runs.from_base(base), SMOOTH, *settings)


def command(config: BaseRun, folder: Path) -> list[str]:
    """The command that does ``config`` in ``folder/two``, its settings in a file."""
    kind = "train" if hasattr(config, "train") else "sft"
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json())), encoding="utf-8")
    return [kind, str(file), f"output_dir={folder / 'two'}"]


@pytest.fixture(scope="module")
def both(base: Path, tmp_path_factory) -> dict[str, Path]:
    """Folders with the run of one rank in ``one`` and that of two in ``two``."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    commands = []
    for name, folder in folders.items():
        if name == "sft":
            runs.sft(folder / "one", *SFT)
            # Shares of 5 and 4 examples: three microbatches on one rank, two on the other.
            config = runs.sft_config(folder, *SFT, "sft.microbatch_size=2")
        else:
            settings = rl_settings(name, base)
            runs.trainer(folder / "one", *settings).train()
            config = runs.rl_config(folder, *settings)
        commands.append(json.dumps(command(config, folder)))
    commands += evaluations(base, tmp_path_factory.mktemp("eval"), folders)
    script = Path(__file__).with_name("launch.py")
    launch(sys.executable, str(script), "2", *commands)
    return folders


def evaluations(base: Path, folder: Path, folders: dict[str, Path]) -> list[str]:
    """The commands of an evaluation and of the rest of one that was cut, done by one rank here."""
    commands = []
    for name in ("answers", "rest"):
        (folder / name).mkdir()
        folders[name] = folder / name
        # 2 x 10 problems x 3 completions in batches of 7: the last ones leave a rank little or nothing to do.
        asked = ["eval", str(base), "--seeds", "0-1", "--num-samples", "3", "sampler.temperature=1"]
        asked += ["--num-fewshot", "1", "--batch-size", "7", "--out"]
        assert runs.egspo(*asked, str(folder / name / "one.json")).code == 0
        if name == "rest":
            for suffix in (".json", ".jsonl"):
                text = (folder / name / f"one{suffix}").read_bytes()
                (folder / name / f"two{suffix}").write_bytes(text[:-9000] if suffix == ".jsonl" else text)
        commands.append(json.dumps([*asked, str(folder / name / "two.json")]))
    return commands


def launch(*arguments: str) -> None:
    """Run in a session of its own: ranks that wait for each other forever are killed together."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(arguments, start_new_session=True, **pipes)
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs: {process.communicate()[0][-3000:]}")
    assert process.returncode == 0, output[-3000:]


def assert_same_curve(one: Path, two: Path) -> None:
    left, right = runs.timeless(runs.rows(one)), runs.timeless(runs.rows(two))
    assert len(left) == len(right)
    for single, double in zip(left, right, strict=True):
        assert single.keys() == double.keys()
        for key, value in single.items():
            exact = key.startswith("reward/") or key in ("step", "samples", "tokens", "update/canvases")
            tolerance = 1e-12 if exact else TOLERANCE
            if value is None:
                assert double[key] is None, key
                continue
            assert double[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (key, single["step"])


def assert_same_weights(one: Path, two: Path) -> None:
    (file,) = [path.name for path in (one / "model").glob("*.safetensors")]
    left, right = load_file(one / "model" / file), load_file(two / "model" / file)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value - right[name]).abs().max() < TOLERANCE, name


def assert_same_validations(one: Path, two: Path) -> None:
    files = sorted(path.name for path in (one / "eval").iterdir())
    assert files
    assert files == sorted(path.name for path in (two / "eval").iterdir())
    for name in files:
        assert (one / "eval" / name).read_text() == (two / "eval" / name).read_text()


@pytest.mark.timeout(600)
def test_torchrun(base: Path, tmp_path: Path):
    """The documented launch, with everything that ranks share: several updates, a reference, validations."""
    settings = [*rl_settings("full", base), "tracking.report_to=[tensorboard]"]
    runs.trainer(tmp_path / "one", *settings).train()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "egspo")
    launch(sys.executable, *torchrun, *command(runs.rl_config(tmp_path, *settings), tmp_path))
    one, two = tmp_path / "one", tmp_path / "two"
    assert_same_curve(one, two)
    assert_same_weights(one, two)
    assert_same_validations(one, two)
    assert runs.rows(two)[-1]["loss/kl"] > 0
    # Only the main process writes: no line stands there twice.
    assert len(runs.rows(two, "transcripts.jsonl")) == 4 * 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_are_one(both: dict[str, Path], name: str):
    assert_same_curve(both[name] / "one", both[name] / "two")
    assert_same_weights(both[name] / "one", both[name] / "two")
    if name == "sft":
        assert_same_validations(both[name] / "one", both[name] / "two")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["answers", "rest"])
def test_two_ranks_evaluate_as_one(both: dict[str, Path], name: str):
    folder = both[name]
    assert (folder / "two.jsonl").read_bytes() == (folder / "one.jsonl").read_bytes()
    assert len(runs.rows(folder, "two.jsonl")) == 60
    summary = (folder / "one.json").read_text().replace('"name": "one"', '"name": "two"')
    assert (folder / "two.json").read_text() == summary


def test_a_rank_without_an_active_sample_waits_for_the_other(both: dict[str, Path]):
    """The case did occur: exactly one of the two groups had equal rewards, and one had not."""
    rows = runs.rows(both["idle"] / "two")
    alone = [row for row in rows if row["reward/zero_std_fraction"] == 0.5]
    assert alone
    assert all(row["steps/skipped_samples_fraction"] == 0.5 and row["optim/grad_norm"] > 0 for row in alone)
    # And so did the one in which both are idle, which takes no step at all.
    nobody = [row for row in rows if row["reward/zero_std_fraction"] == 1]
    assert nobody
    assert all(row["optim/grad_norm"] is None for row in nobody)


@pytest.mark.timeout(600)
def test_one_rank_stops_all_and_need_not_validate(tmp_path: Path):
    """Of a model with buffers, for which no rank may wait: a validation of one problem is one rank's."""
    script, model = Path(__file__).with_name("stopping.py"), save_model(tmp_path / "bert", "bert")
    settings = ["train.max_steps=6", "train.eval_steps=1", "eval.limit=1", "train.num_generations=8"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    launch(sys.executable, *torchrun, str(script), str(model), str(tmp_path / "run"), *settings)
    rows = runs.rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert any(row["optim/grad_norm"] for row in rows)  # buffers go round with a forward pass that trains
    assert len(list((tmp_path / "run" / "eval").glob("validation-*.json"))) == 2


def test_groups_that_do_not_share_out_are_refused_by_name(tmp_path: Path):
    config = runs.rl_config(tmp_path, "train.prompts_per_step=6", "train.updates_per_rollout=3")
    message = (
        "^train.prompts_per_step: 6 groups do not share out over 4 ranks and 3 updates; use a multiple of 12$"
    )
    with pytest.raises(ValueError, match=message):
        Sharing(config.train, 4)
