"""What a process finds out about its launch; the GPUs are made up, for there may be none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from egspo import launch
from egspo.policy import load_policy


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(("local_rank", "index"), [(None, 0), ("1", 1), ("3", 1)])
def test_a_rank_has_a_gpu_of_its_own(two_gpus, monkeypatch, local_rank: str | None, index: int):
    """Two ranks must not both load a model to the first GPU."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert launch.device() == torch.device("cuda", index)


def test_a_policy_goes_to_the_gpu_of_its_rank(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    asked, moved = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, to: asked.append(to) or moved(self, "cpu"))
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        load_policy("tiny:sudoku-sft")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    assert asked == [torch.device("cuda", 1)]


def test_no_run_is_on_the_cpu_by_mistake(monkeypatch, tmp_path: Path):
    gpu = tmp_path / "nvidia0"
    gpu.touch()
    monkeypatch.setattr(launch, "GPU", gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ValueError, match=r"cannot use it; install a driver for CUDA 13\.0"):
        launch.device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.device() == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpu.unlink()
    assert launch.device() == torch.device("cpu")


def test_the_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)))
    assert launch.cores() == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert launch.cores() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert launch.cores() == 1


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MIXED_PRECISION", "bf16", "mixed_precision: 'bf16' of accelerate's configuration; set it to 'no'"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps: 4 of accelerate's configuration"),
    ],
)
def test_half_an_accelerate_configuration_is_refused(variable: str, value: str, told: str, tmp_path: Path):
    """As ``accelerate launch`` passes it on, from a default configuration that a user may have forgotten."""
    command = [sys.executable, "-m", "egspo", "train", "debug/toy", f"output_dir={tmp_path / 'out'}"]
    environment = os.environ | {f"ACCELERATE_{variable}": value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(900)
def test_runs_on_a_device_of_its_own():
    """`on_a_device.py`, in a process that has that device."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch has no devices written in Python")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    file = Path(__file__).with_name("on_a_device.py")
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
