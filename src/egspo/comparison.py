"""The command ``egspo compare``: checks the whole comparison first, then makes it."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from egspo.console import check_writable, quiet


def compare(
    settings: Annotated[
        list[str], typer.Argument(metavar="CONFIG.yaml... [key=value...]", help="as of train")
    ],
    objectives: Annotated[
        str, typer.Option(metavar="A,B,C", help="objectives, labels of compare.methods, or YAML files")
    ] = "",
    seeds: Annotated[str, typer.Option(metavar="N-M", help="of the final runs")] = "0-4",
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=N", help="samples=N a run; seconds=S of training besides"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="method to pair the others with; default: the first of --objectives")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs at a time; default: one a core, one in all beside a GPU")
    ] = None,
    no_search: Annotated[bool, typer.Option("--no-search", help="take all settings as they are")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all runs; start none")] = False,
    out: Annotated[
        Path, typer.Option(help="folder of results, to which methods and seeds can be added")
    ] = Path("runs/compare"),
) -> None:
    """Several methods from one base at one budget, each tuned by the same search: table, curves, tests.

    Example: egspo compare sudoku/task compare/sudoku --objectives egspo-sa,wd1 --seeds 0-2
    """
    from egspo.compare.conduct import compare as conduct
    from egspo.compare.conduct import num_runs
    from egspo.compare.jobs import default_at_once
    from egspo.compare.plan import Plan, parse_budget
    from egspo.compare.results import Results
    from egspo.compose import split_settings
    from egspo.report import write_report
    from egspo.settings import whole_numbers
    from egspo.tracking import Screen

    check_writable(out, "--out")
    labels = [label.strip() for label in objectives.split(",") if label.strip()]
    plan = Plan(*split_settings(settings), labels, parse_budget(budget or []), not no_search)
    numbers = whole_numbers(seeds, "--seeds")
    if plan.config.search_seed in numbers:
        raise ValueError(f"--seeds: {plan.config.search_seed} is compare.search_seed; choose others")
    against = against or next(iter(plan.methods))
    known = [*dict.fromkeys([*plan.methods, *Results(out).labels])]
    if against not in known:
        raise ValueError(f"--against: {against!r} is not compared; known: {', '.join(known)}")
    total = num_runs(plan, numbers, out)
    if total:
        _walk_through(plan)
    if dry_run:
        return typer.echo(f"{plan.describe()}\nruns: {total} to make, results in {out}, not written to")
    if plan.seen:
        typer.echo(f"note: {plan.seen}")
    command = shlex.join(["egspo", *sys.argv[1:]])
    with Screen("compare", total) as screen:
        table = conduct(plan, numbers, out, jobs or default_at_once(), against, command, screen.advance)
    typer.echo(f"{table}\nreport: {write_report([out], out / 'report.html')}")


def _walk_through(plan) -> None:
    """Raises ValueError for what would end a run of any method at its beginning, such as a missing model."""
    from egspo.dryrun import findings

    quiet()
    for label in plan.methods:
        try:
            findings(plan.parsed(label))
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
