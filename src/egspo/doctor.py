"""What there is to work with, and what a run would need of it. Heavy imports wait until the command runs."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

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
UNKNOWN = "unknown"


def doctor(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml... key=value...]", help="as of train and sft")
    ] = None,
    config: Annotated[list[str] | None, typer.Option(help="file or recipe, before all others")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB of the device to plan for; default: this one's")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="processes to plan for, each with that memory; default: 1")
    ] = None,
) -> None:
    """Versions, devices, memory, sandbox, trackers, caches; or the memory that a configuration needs.

    Example: egspo doctor --config debug/sudoku train.microbatch_size=64
    """
    asked = [*(config or []), *(settings or [])]
    if not asked:
        if memory is not None or ranks is not None:
            raise ValueError(
                "--memory, --ranks: of what a configuration needs; name one (egspo doctor --help)"
            )
        for subject, finding in findings():
            typer.echo(f"{subject:<16} {finding}")
        return
    rows, problems = memory_plan(asked, memory, ranks or 1)
    for part, size, words in rows:
        typer.echo(f"{part:<12} {size:>8} GiB  {words}".rstrip())
    if problems:
        raise ValueError("\n".join(problems))
    typer.echo("fits" if rows[-1][1] != UNKNOWN else "the system does not say what is available")


def findings() -> list[tuple[str, str]]:
    """(subject, finding) pairs, in the order to show them."""
    import torch

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
        *_sandbox(),
        ("hub cache", _hub_cache()),
        ("shipped models", ", ".join(f"tiny:{name}" for name in shipped_models()) or "none"),
        ("tasks", ", ".join(registry.names("tasks"))),
        ("objectives", ", ".join(registry.names("objectives"))),
    ]


def memory_plan(
    settings: Sequence[str], gib: float | None = None, ranks: int = 1
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of what a configuration needs on one of ``ranks`` processes, and what does not fit.

    ``gib`` is the memory of another machine than this one.

    Raises:
        ConfigError: for an impossible configuration.
    """
    from egspo.capacity import available_bytes
    from egspo.compose import ConfigError
    from egspo.fit import GIB, prompt_tokens, refuse, table
    from egspo.memory import predict

    config = _plannable(settings)
    available = available_bytes() if gib is None else int(gib * GIB)
    memory = predict(config, prompt_tokens(config), ranks)
    problems = []
    if available is not None:
        try:
            refuse(config, memory, available, ranks)
        except ConfigError as error:
            problems = error.problems
    shown = UNKNOWN if available is None else f"{available / GIB:.1f}"
    return [*table(config, memory), ("available", shown, "")], problems


def _plannable(settings: Sequence[str]):
    """A checked configuration, which may ask for the 4-bit weights that only another machine can load."""
    from egspo.compose import ConfigError, compose, split_settings
    from egspo.config import RLRun, SFTRun, parse_config

    values = compose(*split_settings(settings))
    kind = SFTRun if "sft" in values and "objective" not in values else RLRun
    model = values.get("model")
    packed = isinstance(model, dict) and model.get("load_in_4bit") is True and not model.get("init")
    if not packed:
        return parse_config(kind, values)
    values["model"] = {key: value for key, value in model.items() if key != "load_in_4bit"}
    config = parse_config(kind, values)
    config = config.model_copy(update={"model": config.model.model_copy(update={"load_in_4bit": True})})
    if problems := config.problems():
        raise ConfigError(problems)
    return config


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

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


def _sandbox() -> list[tuple[str, str]]:
    """A line for each tier, best first; ``auto`` takes the first that works, never ``unsafe``."""
    from egspo.sandbox import tiers

    found = tiers()
    taken = next((name for name, works, _ in found if works and name != "unsafe"), None)
    lines = []
    for name, works, detail in found:
        state = "isolates " + detail if works else "does not work here: " + detail
        note = " (auto)" if name == taken else " (only with sandbox.allow_unsafe)" if name == "unsafe" else ""
        lines.append(("sandbox", f"{name}{note}: {state}"))
    return lines


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    return (
        f"{folder} ({sum(1 for _ in folder.glob('models--*'))} models)"
        if folder.is_dir()
        else f"{folder} (empty)"
    )
