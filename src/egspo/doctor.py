"""What there is to work with: versions, devices, memory, trackers, caches."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import torch

from egspo import registry
from egspo.models.source import shipped_models

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "safetensors",
    "datasets",
    "pydantic",
)
TRACKERS = ("tensorboard", "wandb", "trackio")


def findings() -> list[tuple[str, str]]:
    """(subject, finding) pairs, in the order to show them."""
    return [
        ("python", platform.python_version()),
        *((name, _version(name)) for name in ("egspo", *PACKAGES)),
        ("device", _device()),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads a process"),
        ("memory", _memory()),
        ("disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"),
        (
            "trackers",
            ", ".join(name for name in TRACKERS if importlib.util.find_spec(name)) or "none installed",
        ),
        ("hub cache", _hub_cache()),
        ("shipped models", ", ".join(f"tiny:{name}" for name in shipped_models()) or "none"),
        ("tasks", ", ".join(registry.names("tasks"))),
        ("objectives", ", ".join(registry.names("objectives"))),
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu (no CUDA device)"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} with {p.total_memory / 2**30:.0f} GiB" for p in names)


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free"


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    return (
        f"{folder} ({sum(1 for _ in folder.glob('models--*'))} models)"
        if folder.is_dir()
        else f"{folder} (empty)"
    )
