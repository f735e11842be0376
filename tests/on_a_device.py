"""Training and evaluation on a device that is not the CPU, run by test_device.py in a process of its own."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator

import runs
from egspo import registry
from egspo.elbo import log_likelihoods
from egspo.evaluation import evaluate
from egspo.policy import load_policy
from egspo.sections import SamplerConfig
from elsewhere import DEVICE, Elsewhere
from test_learning import OWN

BLOCKS = "sampler={max_completion_length: 4, block_length: 2, diffusion_steps: 4, remasking: low_confidence}"
VARIANTS = {
    "reference": ["objective.beta=0.1"],
    "adaptive": ["objective.selection=adaptive"],
    "optimal": ["objective.selection=optimal", "objective.num_selected_steps=1"],
    "drawn": ["objective.selection=entropy_sampled", "objective.num_selected_steps=1"],
    "token": ["objective.ratio=token", "objective.aggregation=mean"],
    "fitted": [
        "objective.step_advantage_weight=fitted",
        "objective.baseline=score_weighted",
        "sampler.remasking=top_prob",
    ],
    "samples": ["objective.step_value_samples=3"],
    "passes": ["objective.step_value_passes=2"],
    "guided": ["sampler.cfg_scale=1.0"],
    "prefix": [BLOCKS, "sampler.cache=prefix"],
    "dual": [BLOCKS, "sampler.cache=dual", "sampler.cache_refresh_steps=1"],
    "parallel": [BLOCKS, "sampler.confidence_threshold=0.05"],
    "exact": [BLOCKS, "sampler.score_positions=true"],
    "checkpointing": ["model.gradient_checkpointing=true"],
    **{
        name: [f"sampler.remasking={name}"]
        for name in ("top_prob", "plackett_luce", "random", "margin", "entropy")
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder)
    return folder / "model"


def on_the_device():
    """Runs are on it."""
    return mock.patch.object(Accelerator, "device", DEVICE)


def assert_same(there: Path, here: Path) -> None:
    """Rounded otherwise: what is one operation on the CPU may be several on a device."""
    for row, other in zip(*(runs.timeless(runs.rows(folder)) for folder in (there, here)), strict=True):
        known = {key: value for key, value in other.items() if value is not None}
        assert {key: value for key, value in row.items() if value is not None} == pytest.approx(
            known, rel=2e-3, abs=1e-5
        )


def assert_trains_alike(folder: Path, base: Path, *overrides: str) -> None:
    overrides = (*runs.from_base(base), "train.num_iterations=2", *overrides)
    runs.train(folder / "here", *overrides, dtype=None)
    with on_the_device():
        trainer = runs.trainer(folder / "there", *overrides, dtype=None)
        assert trainer.policy.device == DEVICE
        trainer.train()
    assert_same(folder / "there", folder / "here")


def test_tensors_of_two_devices_do_not_mix():
    here, there = torch.ones(2), torch.ones(2, device=DEVICE)
    assert isinstance(there, Elsewhere)
    with pytest.raises(RuntimeError, match="one device"):
        here + there
    with pytest.raises(RuntimeError, match="one device"):
        torch.where(there > 0, here, there)
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="whole numbers"):
        torch.ones(2, 2, dtype=torch.long, device=DEVICE) @ torch.ones(2, 2, dtype=torch.long, device=DEVICE)
    assert (there + 1).cpu().tolist() == [2.0, 2.0]
    assert type(there.cpu()) is torch.Tensor


@pytest.mark.parametrize("name", registry.names("objectives"))
def test_an_objective_trains_as_on_the_cpu(name: str, base: Path, tmp_path: Path):
    assert_trains_alike(tmp_path, base, f"objective.name={name}", *OWN.get(name, []))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_setting_trains_as_on_the_cpu(name: str, base: Path, tmp_path: Path):
    assert_trains_alike(tmp_path, base, *VARIANTS[name])


def test_an_adapter_trains_as_on_the_cpu(base: Path, tmp_path: Path):
    lora = ["model.use_peft=true", "model.lora_r=2", "objective.beta=0.1"]
    assert_trains_alike(tmp_path, base, *lora)


def test_a_run_goes_on_there(base: Path, tmp_path: Path):
    overrides = [*runs.from_base(base), "train.max_steps=4", "train.save_steps=2", "train.eval_steps=2"]
    runs.train(tmp_path / "here", *overrides)

    def stop(trainer, row) -> None:
        trainer.should_stop = row["step"] == 2

    with on_the_device():
        runs.train(tmp_path / "there", *overrides, callbacks=[stop])
        assert len(runs.rows(tmp_path / "there")) == 2
        runs.train(tmp_path / "there", *overrides)
    assert_same(tmp_path / "there", tmp_path / "here")


def test_sft_trains_as_on_the_cpu(tmp_path: Path):
    runs.sft(tmp_path / "here", "sft.max_steps=4", "sft.eval_steps=2")
    with on_the_device():
        runs.sft(tmp_path / "there", "sft.max_steps=4", "sft.eval_steps=2")
    assert_same(tmp_path / "there", tmp_path / "here")


def test_evaluation_and_likelihoods_are_those_of_the_cpu(base: Path):
    task = registry.load_task("toy", prompt="compact")
    sampler = SamplerConfig(max_completion_length=2, block_length=2, diffusion_steps=2, temperature=0.7)
    here, there = load_policy(base), load_policy(base, device=DEVICE)
    assert there.device == DEVICE
    prompts = task.load("test")
    asked = [evaluate(policy, task, prompts, sampler, num_samples=2)[1] for policy in (here, there)]
    assert asked[0] == asked[1]
    pairs = [([5, 6], [7, 8, 9]), ([5], list(range(4, 12)))]
    bounds = [log_likelihoods(policy, pairs, num_samples=16, cfg_scale=0.5) for policy in (here, there)]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)
