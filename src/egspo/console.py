"""What the commands show, and how they keep quiet."""

import json
import os
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table


def quiet() -> None:
    """Our own progress is shown; transformers' bars for files of a few kilobytes are noise."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def limit_threads(policy) -> None:
    """A small model on the CPU is fastest on one thread; give further cores to further processes."""
    import torch

    small = sum(p.numel() for p in policy.model.parameters()) < 20_000_000
    if policy.device.type == "cpu" and small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_writable(folder: Path, field: str) -> None:
    """Raises ValueError if nothing can be written there; writes nothing itself."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        kind = "is read-only" if existing.is_dir() else "is no folder"
        raise ValueError(f"{field}: {folder} cannot be written ({existing} {kind}); choose another folder")


def walk_through(config) -> None:
    """What a run would do."""
    from egspo.dryrun import findings

    quiet()
    for subject, finding in [*findings(config), ("run folder", f"{config.output_dir}, not written to")]:
        typer.echo(f"{subject:<12} {finding}")


def show(summary: dict) -> None:
    """An evaluation in a line."""
    low, high = summary["ci95"]
    where = f"length {summary['max_completion_length']}, {summary['diffusion_steps']} steps"
    typer.echo(
        f"{summary['task']} {summary['split']} ({where}): accuracy {summary['accuracy']:.1%} "
        f"({summary['correct']}/{summary['n']}, 95% {low:.1%}-{high:.1%})"
        + "".join(f", {name} {count['share']:.1%}" for name, count in summary["counts"].items())
    )


def show_evaluations(run: Path) -> None:
    """The evaluations of a run folder, validations aside, as a table."""
    files = [f for f in sorted((run / "eval").glob("*.json")) if not f.stem.startswith("validation-")]
    if not files:
        return
    table = Table("evaluation", "n", "accuracy", "95% interval", "finer", title=str(run))
    for summary in (json.loads(file.read_text(encoding="utf-8")) for file in files):
        low, high = summary["ci95"]
        finer = ", ".join(f"{name} {count['share']:.1%}" for name, count in summary["counts"].items())
        table.add_row(
            summary["name"], str(summary["n"]), f"{summary['accuracy']:.1%}", f"{low:.1%} - {high:.1%}", finer
        )
    Console().print(table)
