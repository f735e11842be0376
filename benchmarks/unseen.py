"""A comparison read on the test problems alone that its base was not trained on.

    python benchmarks/unseen.py benchmarks/results/screening-countdown

From the verdicts that the folder keeps: accuracy on both kinds of problems at each budget, and the difference
to the baseline on those not seen, with the interval of the comparison's own bootstrap.
"""

import argparse
import json
from pathlib import Path

import torch

from egspo import registry
from egspo.compare.results import Results
from egspo.compare.summary import reading, units, verdicts
from egspo.config import ModelConfig, RLRun, parse_section
from egspo.ops.paired import bootstrap_interval
from egspo.seen import trained_on
from egspo.settings import saved_task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of egspo compare")
    options = parser.parse_args()
    if not (options.folder / "comparison.json").is_file():
        parser.error(f"{options.folder} holds no comparison.json; give a folder of egspo compare")
    results = Results(options.folder)
    comparison = json.loads((options.folder / "comparison.json").read_text(encoding="utf-8"))
    new = unseen(results)
    if new.all():
        parser.exit(0, "the base was trained on none of the test problems, as far as its settings tell\n")
    print(f"{int(new.sum())} of {len(new)} test problems were not trained on")
    before = base_verdicts(results)
    print(f"before training: {before[new].mean():.1%} of those, {before[~new].mean():.1%} of the others")
    for kind, limit in comparison["limits"].items():
        print(f"\n## At {limit:,.10g} {units(results)[kind]} a run\n")
        print("\n".join(table(results, kind, limit, comparison["against"], new)))


def unseen(results: Results) -> torch.Tensor:
    """Of each test problem, in the order of the verdicts, whether the base was not trained on it."""
    base = results.plan["shared"]["base"]
    earlier, task = (
        registry.make_task(parse_section(RLRun, "task", values))
        for values in (saved_task(ModelConfig(**base["model"])), base["task"])
    )
    limit = base.get("eval", {}).get("limit")
    return ~torch.tensor(trained_on(earlier, task, "test")[:limit])


def base_verdicts(results: Results) -> torch.Tensor:
    """Of the base, with which every curve begins."""
    curve = next(curve for trial in results.trials for curve in results.curves(trial).values())
    return verdicts({0: curve[0]}, [0])[0]


def table(results: Results, kind: str, limit: float, against: str, new: torch.Tensor) -> list[str]:
    solved = {}
    for trial in results.trials:
        if kind in trial.chosen and (curves := results.curves(trial)):
            points = {seed: reading(curve, kind, limit) for seed, curve in curves.items()}
            solved[trial.label] = dict(zip(points, verdicts(points, list(points)), strict=True))
    rows = []
    for label, by_seed in solved.items():
        every = torch.stack(list(by_seed.values()))
        both = sorted(set(by_seed) & set(solved.get(against, {})))
        cells = [label, str(len(by_seed)), f"{every[:, new].mean():.1%}", f"{every[:, ~new].mean():.1%}", ""]
        if label != against and both:
            paired = torch.stack([by_seed[seed] - solved[against][seed] for seed in both])[:, new]
            interval = bootstrap_interval(paired)
            spread = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
            cells[-1] = f"{100 * paired.mean():+.1f}{spread}"
        rows.append((float(every[:, new].mean()), cells))
    head = [
        "| method | seeds | not seen | seen | difference on those not seen, 95 % |",
        "|---|---|---|---|---|",
    ]
    return head + ["| " + " | ".join(cells) + " |" for _, cells in sorted(rows, key=lambda row: -row[0])]


if __name__ == "__main__":
    main()
