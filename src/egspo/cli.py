"""The command line. What a user got wrong ends with one line and exit code 2."""

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from egspo import launch
from egspo.compare import RunFailed
from egspo.comparison import compare
from egspo.console import (
    check_summary,
    check_writable,
    completions,
    evaluate_and_show,
    open_model,
    open_run,
    read_run,
    say,
    show_evaluations,
    walk_through,
)
from egspo.doctor import doctor
from egspo.sandbox import ContainmentError

INTERRUPTED = 130
"""Exit code that typer gives a command stopped by Ctrl-C."""
LIGHTER = (
    "Take fewer rows a pass: --batch-size of eval; train.microbatch_size, sft.microbatch_size, "
    "train.rollout_batch_size and eval.batch_size of a run, which goes on from its last checkpoint."
)
FAILURES = (errno.ENOSPC, errno.EIO, errno.ENOMEM)
"""What the system may refuse although the user got nothing wrong."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Reinforcement learning for diffusion language models.",
)

Settings = Annotated[
    list[str], typer.Argument(metavar="CONFIG.yaml... [key=value...]", help="composed left to right")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value...]", help="settings, e.g. task.seed=1")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check all but the weights; write nothing")]
Model = Annotated[str, typer.Argument(help="run folder, model folder, hub name, or tiny:NAME")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="name or FILE.py; default: what the model was trained on")
]
Adapter = Annotated[str | None, typer.Option(help="folder of a PEFT adapter")]
AllowUnsafe = Annotated[
    bool, typer.Option("--allow-unsafe", help="execute model-written code even where no sandbox works")
]
Data = Annotated[Path | None, typer.Option(help="file of problems instead of the task's own")]


@app.command()
def sft(settings: Settings, dry_run: DryRun = False) -> None:
    """Supervised fine-tuning, from scratch or from a checkpoint.

    Example: egspo sft sudoku/task sudoku/sft output_dir=runs/sudoku-sft
    """
    from egspo.config import SFTRun

    if dry_run:
        return walk_through(read_run(SFTRun, settings))
    from egspo.compose import recipes
    from egspo.sft import SFTTrainer

    policy, task, config = open_run(SFTRun, settings)
    folder = SFTTrainer(policy, task, config).train()
    name = config.task.name if config.task else ""
    recipe = f"{name}/task {name}/rl" if f"{name}/rl" in recipes() else "CONFIG.yaml"
    base = f"model.model_name_or_path={folder}"
    if config.model.use_peft or config.model.adapter:
        base = f"model.model_name_or_path={config.model.model_name_or_path} model.adapter={folder}"
    say(f"model: {folder}\nnext:  egspo train {recipe} {base}")


@app.command()
def train(settings: Settings, dry_run: DryRun = False) -> None:
    """Reinforcement learning; goes on by itself where the run folder holds a checkpoint.

    Example: egspo train sudoku/task sudoku/rl output_dir=runs/sudoku-rl objective.num_selected_steps=4
    """
    from egspo.config import RLRun

    if dry_run:
        return walk_through(read_run(RLRun, settings))
    from egspo.trainer import Trainer

    policy, task, config = open_run(RLRun, settings)
    Trainer(policy, task, config).train()
    folder = config.output_dir
    say(f"run:  {folder}\nnext: egspo eval {folder} && egspo report {folder}")


@app.command("eval")
def evaluate(
    model: Model,
    overrides: Overrides = None,
    task: TaskName = None,
    adapter: Adapter = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    length: Annotated[
        list[int] | None, typer.Option(help="canvas length; may be given several times")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="denoising steps; default: as trained, or half the length")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="problems at most")] = None,
    num_fewshot: Annotated[
        int, typer.Option(min=0, help="solved training problems to show before each problem")
    ] = 0,
    num_samples: Annotated[int, typer.Option(min=1, help="completions a problem")] = 1,
    pass_at_k: Annotated[
        str | None, typer.Option(metavar="K,K", help="pass@k to tell; default: 1 and --num-samples")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of draws at a temperature above 0, and of examples; default: 0")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N-M", help="several seeds: each, and their mean")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="completions a pass; default: eval.batch_size of its training, or 256"),
    ] = None,
    allow_unsafe: AllowUnsafe = False,
    out: Annotated[
        Path | None,
        typer.Option(help="summary as FILE.json, answers as they come in FILE.jsonl; the same again goes on"),
    ] = None,
) -> None:
    """Accuracy on a task, decoded as in the validation of the training: greedy unless that was set otherwise.

    Example: egspo eval tiny:sudoku-rl --limit 200
    """
    from egspo.settings import eval_batch_size, samplers_of, task_of

    if out is not None:
        check_summary(out)
    asked = completions(seed, seeds, num_samples, pass_at_k) | {"num_fewshot": num_fewshot, "split": split}
    accelerator = launch.accelerator()
    policy = open_model(model, adapter, overrides, accelerator.device)
    problems = task_of(policy, task, data, overrides or [], allow_unsafe)
    prompts = problems.load(split)[:limit]
    samplers = samplers_of(policy, length or [], steps, overrides or [])
    asked["batch_size"] = batch_size or eval_batch_size(policy)
    evaluate_and_show(policy, problems, prompts, samplers, accelerator, out, **asked)


@app.command()
def grade(
    generations: Annotated[Path, typer.Argument(metavar="INPUT.jsonl", exists=True, dir_okay=False)],
    overrides: Overrides = None,
    task: Annotated[str, typer.Option("--task", help="whose rules: name or FILE.py")] = ...,
    grader: Annotated[str, typer.Option(help="default or paper")] = "default",
    allow_unsafe: AllowUnsafe = False,
    out: Annotated[Path | None, typer.Option(help="verdicts as JSON lines")] = None,
) -> None:
    """Grade saved generations; no model needed.

    Example: egspo grade --task sudoku generations.jsonl --out verdicts.jsonl
    """
    from egspo.grading import accuracy, grade_file
    from egspo.settings import task_of

    if grader not in ("default", "paper"):
        raise ValueError(f"--grader: {grader!r} is unknown; give default or paper")
    if out is not None:
        check_writable(out.parent, "--out")
    problems = task_of(None, task, None, overrides or [], allow_unsafe)
    verdicts = list(grade_file(problems, generations, grader))
    lines = "".join(json.dumps(verdict) + "\n" for verdict in verdicts)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(lines, encoding="utf-8")
    else:
        sys.stdout.write(lines)
    for verdict in verdicts:
        if verdict["broken"]:
            typer.echo(f"{generations}: {verdict['reason']}; graded wrong", err=True)
    typer.echo(accuracy(verdicts, problems.paper_count if grader == "paper" else None))


@app.command()
def sample(
    model: Model,
    overrides: Overrides = None,
    prompt: Annotated[str | None, typer.Option(help="what to complete")] = None,
    task: TaskName = None,
    index: Annotated[int | None, typer.Option(min=0, help="problem of the task's test split")] = None,
    adapter: Adapter = None,
    data: Data = None,
    seed: int = 0,
    trace: Annotated[Path | None, typer.Option(help="draw the denoising step by step into FILE.html")] = None,
) -> None:
    """Generate, and show how the text was denoised.

    Example: egspo sample tiny:sudoku-rl --index 3 --trace trace.html
    """
    from egspo.rollout import generate
    from egspo.settings import samplers_of, task_of
    from egspo.trace import write_trace

    if (prompt is None) == (index is None):
        raise ValueError("--prompt: give either --prompt TEXT or --index N (with --task NAME)")
    if prompt is not None and (task is not None or data is not None):
        raise ValueError("--prompt: takes no --task and no --data; give --index N to take a problem's prompt")
    if trace is not None:
        check_writable(trace.parent, "--trace")
    policy = open_model(model, adapter, overrides)
    sampler = samplers_of(policy, [], None, overrides or [])[0]
    problem = None
    if index is not None:
        problems = task_of(policy, task, data, overrides or [])
        tests = problems.load("test")
        if index >= len(tests):
            raise ValueError(
                f"--index: {index} is beyond the {len(tests)} problems; use 0 to {len(tests) - 1}"
            )
        problem = tests[index]
    asked = prompt if problem is None else problem.messages
    out = generate(policy, [asked], seed=seed, **sampler.model_dump())
    typer.echo(out.texts[0])
    if problem is not None:
        verdict = problems.grade(out.texts[0], problem.fields)
        typer.echo(f"{'correct' if verdict.correct else 'wrong'}: {verdict.reason}", err=True)
    if trace is not None:
        shown = prompt if problem is None else problem.messages[-1]["content"]
        typer.echo(f"trace: {write_trace(trace, policy, shown, out)}", err=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="default: report.html in the first run folder")] = None,
) -> None:
    """Draw one self-contained HTML page for one run or several side by side.

    Example: egspo report runs/sudoku-rl
    """
    from egspo.report import write_report

    page = write_report(runs, out or runs[0] / "report.html")
    for run in runs:
        show_evaluations(run)
    typer.echo(f"report: {page}")


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", exists=True, file_okay=False)],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the folder only; no network")] = False,
    out: Annotated[Path | None, typer.Option(help="where to write it; default: RUN/publish")] = None,
    private: Annotated[bool, typer.Option("--private", help="if the repository is new")] = False,
    base_model: Annotated[str | None, typer.Option(help="hub name of an adapter's base")] = None,
    license: Annotated[str | None, typer.Option(help="identifier for the card, e.g. apache-2.0")] = None,
) -> None:
    """A finished run to the hub: weights or adapter, tokenizer, settings and a model card.

    Example: egspo publish runs/sudoku-rl me/sudoku-rl --dry-run
    """
    from egspo.publish import require_access, upload, write_folder

    if not dry_run:
        require_access()
    folder = write_folder(run, repo, out, base_model, license)
    if dry_run:
        given = {"--base-model": base_model, "--license": license}
        options = [word for option, value in given.items() if value for word in (option, value)]
        words = [str(run), repo, *options, *["--private"] * private]
        typer.echo(f"folder: {folder}\nnext:   egspo publish {shlex.join(words)}")
    else:
        typer.echo(f"published: {upload(folder, repo, private)}")


@app.command("list")
def list_(what: Annotated[str, typer.Argument(metavar="objectives|tasks|models|recipes|settings")]) -> None:
    """What there is, one line each with its source.

    Example: egspo list tasks
    """
    from egspo.listing import LISTINGS

    if what not in LISTINGS:
        raise ValueError(f"list: {what!r} is not one of {', '.join(LISTINGS)}")
    for name, line in LISTINGS[what]():
        typer.echo(f"{name:<28} {line}")


app.command()(compare)
app.command()(doctor)


def main() -> None:
    """Entry point; EGSPO_DEBUG=1 shows tracebacks of user errors too."""
    try:
        app(prog_name="egspo")
    except (ValueError, OSError) as error:
        if os.environ.get("EGSPO_DEBUG") or getattr(error, "errno", None) in FAILURES:
            raise
        sys.stderr.write("".join(f"egspo: {line}\n" for line in str(error).splitlines()))
        sys.exit(2)
    except (FloatingPointError, ContainmentError, RunFailed) as error:
        sys.stderr.write(f"egspo: {error}\n")
        sys.exit(1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.stderr.write(f"egspo: {str(error).splitlines()[0]} {LIGHTER}\n")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            sys.stderr.write("\negspo: interrupted; the same command goes on from what was saved\n")
        raise
