"""Checkpoints of a run: written whole or not at all, found by number, and enough to go on bit for bit."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn

from egspo.policy import unwrap

BEST = "best.safetensors"
_NAME = re.compile(r"step-([0-9]+)")


class Checkpoints:
    """``checkpoints/step-000100/`` with the trainable weights, the optimizer and the trainer's counters.

    All noise of a run is a function of its seed and step, so there is no generator state to keep. A
    checkpoint also holds the best validated weights as they were then: a run that goes on from it may see
    other scores the second time, and must not be left with weights that belong to none of them.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._best = folder / BEST

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, in numerical order."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def last(self) -> int:
        """The step of the newest whole checkpoint, 0 if there is none; to be asked by all ranks at once.

        Raises:
            ValueError: if the ranks see different ones.
        """
        step = max(self.steps(), default=0)
        seen = gather_object([step])
        if len(set(seen)) > 1:
            raise ValueError(
                f"output_dir: {self.folder.parent} is at step {min(seen)} for some ranks and at {max(seen)} "
                "for others; choose a folder that all nodes share"
            )
        return step

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Write to a temporary folder, then rename: an interrupted write leaves no checkpoint."""
        draft = self.folder / f".draft-{step:06d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trainable_state(model), draft / "trainable.safetensors")
        torch.save(
            {"optimizer": optimizer.state_dict(), "state": {**state, "step": step}}, draft / "trainer.pt"
        )
        if self._best.is_file():
            link(self._best, draft / BEST)
        shutil.rmtree(self._at(step), ignore_errors=True)
        os.replace(draft, self._at(step))
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._at(old))

    def save_best(self, model: nn.Module) -> None:
        """Keep the weights of the best validation so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".draft-{BEST}"
        save_file(trainable_state(model), draft)
        os.replace(draft, self._best)

    def load_best(self, model: nn.Module) -> None:
        load_trainable(model, load_file(self._best))

    def restore_best(self, step: int) -> None:
        """Bring back the best validated weights as they were at a checkpoint."""
        if (self._at(step) / BEST).is_file():
            draft = self.folder / f".draft-{BEST}"
            shutil.copyfile(self._at(step) / BEST, draft)
            os.replace(draft, self._best)

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a checkpoint into model and optimizer; returns the trainer's counters."""
        load_trainable(model, load_file(self._at(step) / "trainable.safetensors"))
        saved = torch.load(self._at(step) / "trainer.pt", weights_only=True, map_location="cpu")
        optimizer.load_state_dict(saved["optimizer"])
        return saved["state"]

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters that training changes."""
    named = unwrap(model).named_parameters()
    return {name: p.detach().cpu().clone().contiguous() for name, p in named if p.requires_grad}


def load_trainable(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    parameters = dict(unwrap(model).named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
