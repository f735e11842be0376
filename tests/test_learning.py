"""Every objective learns the smallest task from rewards alone, and nothing from shuffled ones. So does SFT.

Rewards shuffled over the batch are the same numbers without their meaning: what still improved then would not
come from the rewards.
"""

from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.evaluation import evaluate
from egspo.policy import load_policy

OBJECTIVES = registry.names("objectives")
# 16 prompts x 8 completions a time, about half as often again as it takes.
BUDGET = ["train.max_steps=60", "train.prompts_per_step=16", "train.num_generations=8"]
# What some objectives ask for, or what their published settings are too large for.
OWN = {
    "d2_stepmerge": ["objective.num_segments=2"],
    "just_grpo": ["sampler.remasking=left_to_right"],
    "mdpo": ["objective.num_selected_steps=2"],
    "vospo": ["objective.num_selected_steps=1", "sampler.remasking=top_prob"],
    "vospo+positions": [
        "objective.num_selected_steps=1",
        "sampler.remasking=low_confidence",
        "sampler.score_positions=true",
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model after 17 steps of SFT: it repeats the digit, but not often."""
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder)
    return folder / "model"


def rewards(folder: Path, base: Path, name: str, *overrides: str) -> tuple[float, float]:
    """Mean reward of the first three iterations and of the last ten."""
    objective = [f"objective.name={name.partition('+')[0]}", *OWN.get(name, [])]
    lines = runs.train(folder, *runs.from_base(base), *BUDGET, *objective, *overrides)
    values = [line["reward/mean"] for line in lines]
    return sum(values[:3]) / 3, sum(values[-10:]) / 10


@pytest.mark.parametrize("name", [*OBJECTIVES, "vospo+positions"])
def test_an_objective_learns(name: str, base: Path, tmp_path: Path):
    first, last = rewards(tmp_path, base, name)
    assert first < 0.55
    assert last > 0.8
    # What was learned shows on prompts that were never trained on.
    task, sampler = registry.load_task("toy", prompt="compact"), runs.rl_config(tmp_path).sampler
    prompts = [*task.load("test"), *task.load("validation")] * 5
    before, _ = evaluate(load_policy(base), task, prompts, sampler)
    after, _ = evaluate(load_policy(tmp_path), task, prompts, sampler)
    assert before["reward"] < 0.6
    assert after["reward"] > 0.75


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_learns_nothing_from_permuted_rewards(name: str, base: Path, tmp_path: Path):
    first, last = rewards(tmp_path, base, name, "train.permute_rewards=true")
    assert first < 0.55
    assert last < first


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_an_objective_learns_with_other_seeds(base: Path, tmp_path: Path, seed: int):
    for name in OBJECTIVES:
        _, last = rewards(tmp_path / name, base, name, f"seed={seed}")
        assert last > 0.8


@pytest.mark.long
def test_a_fresh_model_learns_from_rewards_alone(tmp_path: Path):
    """From random weights, whose random characters earn almost nothing."""
    rows = runs.train(tmp_path, "train.max_steps=250", "train.prompts_per_step=32", "train.num_generations=8")
    assert rows[0]["reward/mean"] < 0.1
    assert sum(row["reward/mean"] for row in rows[-10:]) / 10 > 0.5


# ---- SFT -----------------------------------------------------------------------------------------------


def test_sft_learns(tmp_path: Path):
    tuner = runs.sft(tmp_path, "sft.max_steps=60")
    losses = [row["loss/sft"] for row in runs.rows(tmp_path)]
    # A uniform guess over the vocabulary of about 100 tokens costs log 100 = 4.6 a masked token.
    assert 3.5 < losses[0] < 6
    assert sum(losses[-10:]) / 10 < 0.3
    summary, _ = evaluate(tuner.policy, tuner.task, tuner.task.load("test"), tuner.config.sampler)
    assert summary["accuracy"] > 0.8


def test_sft_stops_at_its_target_and_does_not_go_on(tmp_path: Path):
    settings = ["sft.max_steps=500", "sft.eval_steps=5", "sft.target_score=0.6"]
    runs.sft(tmp_path, *settings)
    steps = len(runs.rows(tmp_path))
    assert steps < 200
    assert steps % 5 == 0
    files = sorted((tmp_path / "eval").glob("*.json"))
    scores = [runs.json.loads(file.read_text())["accuracy"] for file in files]
    assert len(files) == steps // 5
    assert all(score < 0.6 for score in scores[:-1])
    assert scores[-1] >= 0.6
    # The same command again finds the run finished.
    before = (
        (tmp_path / "metrics.jsonl").read_bytes(),
        (tmp_path / "model" / "model.safetensors").read_bytes(),
    )
    runs.sft(tmp_path, *settings)
    after = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "model" / "model.safetensors").read_bytes()
    assert before == after


def test_sft_learns_from_a_file_of_pairs(tmp_path: Path):
    data = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{a}{b}", "completion": f"{a}{a}"} for a in range(10) for b in range(10)]
    data.write_text("".join(runs.json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tuner = runs.sft(tmp_path / "run", f"sft.data={data}", "task=null", "sft.max_steps=60")
    assert sum(row["loss/sft"] for row in runs.rows(tmp_path / "run")[-10:]) / 10 < 0.3
    # What eval does without a task told: nothing is known of one.
    assert runs.json.loads((tuner.folder.path / "model" / "egspo.json").read_text())["task"] == {}


def test_sft_of_an_adapter_changes_the_adapter_alone(base: Path, tmp_path: Path):
    settings = [*runs.from_base(base), "model.use_peft=true", "model.lora_dropout=0.2", "sft.max_steps=20"]
    tuner = runs.sft(tmp_path / "a", *settings)
    losses = [row["loss/sft"] for row in runs.rows(tmp_path / "a")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    inner = dict(load_policy(base).model.named_parameters())
    for name, value in runs.weights(tuner.policy).items():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert value.equal(inner[plain]), name
    # Dropout draws the same noise in the same run.
    runs.sft(tmp_path / "b", *settings)
    assert runs.timeless(runs.rows(tmp_path / "a")) == runs.timeless(runs.rows(tmp_path / "b"))
