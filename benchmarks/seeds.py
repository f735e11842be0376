"""SFT then EGSPO-SA from the README's recipes over several seeds: is the gain there on the mean, and RL's?

    python benchmarks/seeds.py --task sudoku --seeds 0-4 --jobs 2
    python benchmarks/seeds.py --task sudoku --seeds 0-4 --jobs 2 --control

Each seed trains its own base and its own policy, one process a run, and is evaluated before and after on the
same held-out problems with the same greedy sampler. Problems and split are of another task seed than the
recipes', which were chosen on theirs. ``--control`` trains on rewards permuted over the batch instead.
Finished runs are kept, so an interrupted command goes on. Raw runs and the table go to
``benchmarks/results/``; a seed that is there is not run again, so that a table can grow: delete its folder to
make it anew.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from egspo.ops.intervals import student_interval


def main() -> None:
    options = parse()
    label = f"seeds-{options.task}" + ("-control" if options.control else "")
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda seed: run_seed(options, label, seed), seeds))
    write_table(options.results / label, label, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["sudoku", "countdown"], default="sudoku")
    parser.add_argument("--seeds", default="0-4", help="FIRST-LAST")
    parser.add_argument("--task-seed", type=int, default=1, help="seed of the problems and of their split")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--control", action="store_true", help="permute rewards over the batch")
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def run_seed(options: argparse.Namespace, label: str, seed: int) -> dict:
    """One seed from random weights to both evaluations, unless its results are there."""
    target = options.results / label / f"seed-{seed}"
    if (target / "test-after.json").is_file():
        return read_row(target, seed)
    base, run = options.runs / f"{options.task}-sft-{seed}", options.runs / f"{label}-{seed}"
    common = [f"task.seed={options.task_seed}", f"seed={seed}"]
    egspo("sft", f"{options.task}/task", f"{options.task}/sft", f"output_dir={base}", *common)
    source = f"model.model_name_or_path={base}/model"
    control = ["train.permute_rewards=true"] if options.control else []
    recipe = [f"{options.task}/task", f"{options.task}/rl"]
    egspo("train", *recipe, source, f"output_dir={run}", *common, *control)
    for name, model in (("test-before", base), ("test-after", run)):
        if not (run / "eval" / f"{name}.json").is_file():
            egspo("eval", str(model), "--out", str(run / "eval" / f"{name}.json"))
    collect(run, target)
    return read_row(target, seed)


def egspo(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "egspo", *arguments], check=True, env=environment)


def collect(run: Path, target: Path) -> None:
    """Copy what a reader needs to check the table; the last file says that all are there."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", target)
    with gzip.open(target / "metrics.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((run / "metrics.jsonl").read_text(encoding="utf-8"))
    for name in ("test-before", "test-after"):
        shutil.copy(run / "eval" / f"{name}.json", target)


def read_row(target: Path, seed: int) -> dict:
    """A line of the table from a seed's results."""
    names = ("test-before", "test-after")
    scores = {name: json.loads((target / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    with gzip.open(target / "metrics.jsonl.gz", "rt", encoding="utf-8") as file:
        last = json.loads(file.readlines()[-1])
    return {
        "seed": seed,
        "n": scores["test-after"]["n"],
        "before": scores["test-before"]["accuracy"],
        "after": scores["test-after"]["accuracy"],
        "gain": scores["test-after"]["accuracy"] - scores["test-before"]["accuracy"],
        "samples": last["samples"],
        "rl_seconds": last["time"],
    }


def write_table(folder: Path, label: str, rows: list[dict]) -> None:
    gains = [row["gain"] for row in rows]
    mean, interval = statistics.fmean(gains), student_interval(gains)
    summary = {
        "label": label,
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
        "gain": mean,
        "ci95": interval,
    }
    spread = "one seed"
    if interval is not None:
        spread = f"95 % interval {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    lines = [
        f"# {label}",
        "",
        f"Made by `{summary['command']}`; accuracy of whole problems, greedy, n = {rows[0]['n']} held out.",
        "",
        "| seed | before | after | gain | samples | RL seconds (one core) |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['seed']} | {r['before']:.1%} | {r['after']:.1%} | {100 * r['gain']:+.1f} "
            f"| {r['samples']} | {r['rl_seconds']:.0f} |"
            for r in rows
        ),
        "",
        f"Mean gain {100 * mean:+.1f} points, {spread} (Student's t over seeds).",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
