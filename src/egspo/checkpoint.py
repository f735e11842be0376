"""Checkpoints of a run: written whole or not at all, found by number, and enough to go on bit for bit."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from egspo.policy import unwrap


class Checkpoints:
    """``checkpoints/step-000100/`` with the trainable weights, the optimizer and the trainer's counters.

    All noise of a run is a function of its seed and step, so there is no generator state to keep.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, in numerical order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write to a temporary folder, then rename: an interrupted write leaves no checkpoint."""
        target = self.folder / f"step-{step:06d}"
        draft = self.folder / f".draft-{step:06d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trainable_state(model), draft / "trainable.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "state": {**state, "step": step}}, draft / "trainer.pt")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:06d}")

    def save_best(self, model: nn.Module) -> None:
        """Keep the weights of the best validation so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / ".draft-best.safetensors"
        save_file(trainable_state(model), draft)
        os.replace(draft, self.folder / "best.safetensors")

    def load_best(self, model: nn.Module) -> None:
        load_trainable(model, load_file(self.folder / "best.safetensors"))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint into model and optimizer; returns the trainer's counters."""
        folder = self.folder / f"step-{step:06d}"
        load_trainable(model, load_file(folder / "trainable.safetensors"))
        saved = torch.load(folder / "trainer.pt", weights_only=True, map_location="cpu")
        optimizer.load_state_dict(saved["optimizer"])
        return saved["state"]


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters that training changes."""
    named = unwrap(model).named_parameters()
    return {name: p.detach().cpu().clone().contiguous() for name, p in named if p.requires_grad}


def load_trainable(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    parameters = dict(unwrap(model).named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
