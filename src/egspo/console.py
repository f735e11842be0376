"""What the commands open and show, and how they keep quiet."""

import os
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from egspo import launch


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


def check_summary(file: Path) -> None:
    """Raises ValueError if ``FILE.json`` and the answers beside it, ``FILE.jsonl``, cannot be written."""
    if file.suffix != ".json" or file.is_dir():
        told = "give a file FILE.json; answers go to FILE.jsonl beside it"
        raise ValueError(
            f"--out: {file} {'is a folder' if file.is_dir() else 'does not end with .json'}; {told}"
        )
    check_writable(file.parent, "--out")


def open_run(kind, settings: list[str]):
    """Configuration, task and policy, in this order: what is wrong shows before anything large is loaded."""
    config = read_run(kind, settings)
    from egspo import registry
    from egspo.config import RLRun
    from egspo.fit import check_memory
    from egspo.policy import build_policy
    from egspo.seen import seen_by

    quiet()
    task = registry.make_task(config.task) if config.task else None
    if task is not None:
        task.prepare(config.sandbox)
    say(check_memory(config, task=task))
    policy = build_policy(config.model, config.seed, task.max_number_token if task else None)
    limit_threads(policy)
    if kind is RLRun and (told := seen_by(config.model, task)):
        say(f"note: {told}")
    return policy, task, config


def read_run(kind, settings: list[str]):
    """The checked configuration of a run."""
    from egspo.compose import split_settings
    from egspo.config import load_config

    config = load_config(kind, *split_settings(settings))
    check_writable(config.output_dir, "output_dir")
    return config


def open_model(model: str, adapter: str | None, overrides: list[str] | None, device=None):
    """The policy of a saved model."""
    from egspo.policy import load_policy
    from egspo.settings import precision_of

    quiet()
    policy = load_policy(model, adapter, device=device, **precision_of(model, adapter, overrides or []))
    limit_threads(policy)
    return policy


def say(text: str) -> None:
    """One process tells what all have done."""
    if launch.rank() == 0:
        typer.echo(text)


def walk_through(config) -> None:
    """What a run would do."""
    from egspo.dryrun import findings

    quiet()
    for subject, finding in [*findings(config), ("run folder", f"{config.output_dir}, not written to")]:
        typer.echo(f"{subject:<12} {finding}")


def completions(seed: int | None, seeds: str | None, num_samples: int, pass_at_k: str | None) -> dict:
    """Which completions ``egspo eval`` asks for.

    Raises:
        ValueError: for two kinds of seeds, what is not written as numbers, or a k above the samples.
    """
    from egspo.evaluation import check_samples
    from egspo.settings import whole_numbers

    ks = [] if pass_at_k is None else whole_numbers(pass_at_k, "--pass-at-k")
    check_samples(num_samples, ks)
    if seed is not None and seeds is not None:
        raise ValueError(f"--seeds: {seeds!r} with --seed {seed}; give one of the two")
    asked = (seed or 0) if seeds is None else whole_numbers(seeds, "--seeds")
    return {"seed": asked, "num_samples": num_samples, "pass_at_k": ks}


def evaluate_and_show(policy, task, prompts, samplers, accelerator, out: Path | None, **asked) -> None:
    """Evaluate with each of the samplers; one process writes and tells what all have done."""
    from egspo.answerlog import AnswerLog
    from egspo.evaluation import evaluate
    from egspo.tracking import Screen

    main, seed = accelerator.is_main_process, asked["seed"]
    total = len(prompts) * asked["num_samples"] * (1 if isinstance(seed, int) else len(seed))
    for sampler in samplers:
        log = None
        if out is not None:
            several = len(samplers) > 1
            log = AnswerLog(out.with_stem(f"{out.stem}-{sampler.max_completion_length}") if several else out)
        with Screen("eval", total, main) as screen:
            summary, _ = evaluate(
                policy,
                task,
                prompts,
                sampler,
                accelerator=accelerator,
                progress=lambda n, s=screen: s.advance(n, ""),
                log=log,
                **asked,
            )
        if main:
            if log is not None:
                log.finish(summary)
            show(summary)
    accelerator.end_training()


def show(summary: dict) -> None:
    """An evaluation in a line, and one for each pass@k and each of several seeds."""
    where = f"length {summary['max_completion_length']}, {summary['diffusion_steps']} steps"
    where += f", {summary['num_fewshot']}-shot" if summary["num_fewshot"] else ""
    finer = "".join(f", {name} {count['share']:.1%}" for name, count in summary["counts"].items())
    typer.echo(f"{summary['task']} {summary['split']} ({where}): accuracy {_share(summary)}{finer}")
    for k, score in summary["pass_at_k"].items():
        typer.echo(f"  pass@{k} {score['value']:.1%} (95% {_range(score)})")
    if summary["over_seeds"] is not None:
        for row in summary["by_seed"]:
            typer.echo(f"  seed {row['seed']}: accuracy {_share(row)}")
        mean = summary["over_seeds"]
        count = f"{len(summary['by_seed'])} seeds"
        typer.echo(f"  mean of {count}: accuracy {mean['accuracy']:.1%} (95% over seeds {_range(mean)})")


def _share(score: dict) -> str:
    return f"{score['accuracy']:.1%} ({score['correct']}/{score['n']}, 95% {_range(score)})"


def _range(score: dict) -> str:
    low, high = score["ci95"]
    return f"{low:.1%}-{high:.1%}"


def show_evaluations(run: Path) -> None:
    """The evaluations of a run folder, validations aside, as a table."""
    from egspo.report.read import interval, read_runs

    if not any((run / "eval").glob("*.json")):
        return
    rows = [row for row in read_runs([run])[0].evaluations if not row["file"].startswith("validation-")]
    table = Table("evaluation", "n", "accuracy", "95% interval", "finer", title=str(run))
    for row in rows:
        finer = ", ".join(f"{name} {count['share']:.1%}" for name, count in row.get("counts", {}).items())
        spread = " - ".join(f"{end:.1%}" for end in interval(row) or ())
        table.add_row(row["file"], str(row.get("n", "")), f"{row['accuracy']:.1%}", spread, finer)
    if rows:
        Console().print(table)
