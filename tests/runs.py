"""Small runs on the toy task, for tests: a second or two each."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from egspo import cli, registry
from egspo.compose import merge, parse_override
from egspo.config import RLRun, SFTRun, parse_config
from egspo.policy import Policy, build_policy
from egspo.sft import SFTTrainer
from egspo.trainer import Trainer

TOY = {
    "task": {"name": "toy", "prompt": "compact"},
    "sampler": {"max_completion_length": 2, "block_length": 2, "diffusion_steps": 2},
}
# The same, and what is trained, as words of a command.
SETTINGS = [
    "model.init=tiny",
    "task={name: toy, prompt: compact}",
    "sampler={max_completion_length: 2, block_length: 2, diffusion_steps: 2}",
    "objective={name: egspo, num_selected_steps: 2}",
]
RL = TOY | {
    "model": {"init": "tiny"},
    "objective": {"name": "egspo", "num_selected_steps": 2},
    "optim": {"learning_rate": 1e-3},
    "train": {"max_steps": 2, "prompts_per_step": 4, "num_generations": 4, "save_steps": 0},
}
SFT = TOY | {
    "model": {"init": "tiny"},
    "optim": {"learning_rate": 2e-3},
    "sft": {"max_steps": 17, "batch_size": 64, "save_steps": 0},
}
# What may differ between two runs that are the same.
CLOCKS = ("time", "time/rollout", "time/reward", "time/update", "memory/peak_gb")


def rl_config(folder: Path, *overrides: str) -> RLRun:
    return parse_config(RLRun, _settings(RL, folder, overrides))


def sft_config(folder: Path, *overrides: str) -> SFTRun:
    return parse_config(SFTRun, _settings(SFT, folder, overrides))


def from_base(base: Path) -> list[str]:
    """Overrides that train a saved model instead of a fresh one."""
    return ["model.init=null", f"model.model_name_or_path={base}"]


def trainer(folder: Path, *overrides: str, dtype=torch.float32, kind=Trainer, **arguments) -> Trainer:
    """A trainer of the toy task, with a policy of its own; ``dtype`` None leaves it as it is configured."""
    config = rl_config(folder, *overrides)
    policy = build_policy(config.model, config.seed)
    if dtype is not None:
        policy.model.to(dtype)
    return kind(policy, registry.make_task(config.task), config, **arguments)


def train(folder: Path, *overrides: str, **arguments) -> list[dict[str, Any]]:
    """Train, and return the lines of the metrics."""
    trainer(folder, *overrides, **arguments).train()
    return rows(folder)


def sft(folder: Path, *overrides: str) -> SFTTrainer:
    """Fine-tune on the toy task; 17 steps make a base that earns about 0.4."""
    config = sft_config(folder, *overrides)
    task = registry.make_task(config.task) if config.task else None
    tuner = SFTTrainer(build_policy(config.model, config.seed), task, config)
    tuner.train()
    return tuner


def rows(folder: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without clocks and memory, which no two runs share."""
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def _settings(base: dict[str, Any], folder: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    values = merge(base, {"output_dir": str(folder)})
    for override in overrides:
        values = merge(values, parse_override(override))
    return values


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def egspo(*arguments: str) -> Ended:
    """``egspo ARGUMENTS`` in this process, exit code and all."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["egspo", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Ended(ended.value.code or 0, out.getvalue(), err.getvalue())
