"""What the curves of a comparison say: scores at each budget, paired differences, a table."""

from collections.abc import Sequence
from typing import Any

import torch

from egspo.compare.results import SLOWDOWN, Results
from egspo.compare.worker import unpack
from egspo.ops.intervals import student_interval
from egspo.ops.paired import bootstrap_interval, holm, paired_p

Point = dict[str, Any]
UNITS = {"samples": "samples", "seconds": "processor seconds"}


def summarise(results: Results, against: str, commands: Sequence[str], seen: str = "") -> dict[str, Any]:
    """``comparison.json``: ``commands, against, seen, plan, limits, budgets``.

    ``seen``: which problems the base was trained on, in words (`egspo.seen`).

    ``budgets`` has, for each kind of budget and each method with a run of what the search chose for it, the
    accuracy by seed, its mean with Student's interval over seeds, the learning curve, and the paired
    difference to ``against`` over the seeds that both have, with its bootstrap interval and its p, adjusted
    by Holm over the finalists (`egspo.ops.paired`): the methods that have the most seeds.
    """
    shared = results.plan["shared"]
    limits = {kind: shared["budget"][kind] for kind in UNITS if shared["budget"][kind]}
    return {
        "commands": list(commands),
        "against": against,
        "seen": seen,
        "plan": results.plan,
        "limits": limits,
        "budgets": {kind: _at_budget(results, kind, limit, against) for kind, limit in limits.items()},
    }


def _at_budget(results: Results, kind: str, limit: int | float, against: str) -> dict[str, Any]:
    chosen = {trial.label: trial for trial in results.trials if kind in trial.chosen}
    curves = {label: found for label, trial in chosen.items() if (found := results.curves(trial))}
    reached = {
        label: {seed: reading(points, kind, limit) for seed, points in found.items()}
        for label, found in curves.items()
    }
    rows = {}
    for label, points in reached.items():
        rows[label] = _score(points, reached.get(against, {})) | {
            "chosen": chosen[label].settings,
            "diverged": [
                seed for seed, point in points.items() if point.get("diverged") and point[kind] < limit
            ],
            "curve": _mean_curve(list(curves[label].values()), list(points.values()), kind, limit),
        }
    _adjust({label: row["difference"] for label, row in rows.items() if label != against})
    return dict(sorted(rows.items(), key=lambda item: -item[1]["mean"]))


def _adjust(differences: dict[str, dict[str, Any]]) -> None:
    """Sets ``p_holm`` of the finalists."""
    most = max((len(found["seeds"]) for found in differences.values()), default=0)
    finalists = [d for d in differences.values() if d["p"] is not None and len(d["seeds"]) == most]
    for found, p in zip(finalists, holm([found["p"] for found in finalists]), strict=True):
        found["p_holm"] = p


def reading(points: Sequence[Point], kind: str, limit: int | float) -> Point:
    """The evaluation at which a budget was first spent; the last one of a run that diverged before."""
    return next((point for point in points if point[kind] >= limit), points[-1])


def _score(points: dict[int, Point], others: dict[int, Point]) -> dict[str, Any]:
    by_seed = {seed: point["accuracy"] for seed, point in points.items()}
    values = list(by_seed.values())
    both = [seed for seed in points if seed in others and points[seed]["n"] == others[seed]["n"]]
    pairs = [points[seed]["accuracy"] - others[seed]["accuracy"] for seed in both]
    interval = None
    if both:
        ours, theirs = (verdicts(of, both) for of in (points, others))
        interval = bootstrap_interval(ours - theirs)
    return {
        "mean": sum(values) / len(values),
        "ci95": student_interval(values),
        "by_seed": by_seed,
        "n": next(iter(points.values()))["n"],
        "samples": _mean(points.values(), "samples"),
        "seconds": _mean(points.values(), "seconds"),
        "difference": {
            "mean": sum(pairs) / len(pairs) if pairs else None,
            "ci95": interval,
            "seeds": both,
            "p": paired_p(pairs),
            "p_holm": None,
        },
    }


def verdicts(points: dict[int, Point], seeds: Sequence[int]) -> torch.Tensor:
    return torch.tensor([unpack(points[seed]["correct"]) for seed in seeds]).double()


def _mean(points, key: str) -> float:
    values = [point[key] for point in points]
    return sum(values) / len(values)


def _mean_curve(
    curves: Sequence[Sequence[Point]], reached: Sequence[Point], kind: str, limit: int | float
) -> list[dict[str, Any]]:
    """Means over seeds: at the steps within the budget that all have, and where it was spent."""
    by_step = [{point["step"]: point for point in points} for points in curves]
    common = [[found[step] for found in by_step] for step in sorted(set.intersection(*map(set, by_step)))]
    rows = [points for points in common if max(point[kind] for point in points) < limit]
    return [
        {
            "samples": _mean(points, "samples"),
            "seconds": _mean(points, "seconds"),
            "accuracy": _mean(points, "accuracy"),
            "ci95": student_interval([point["accuracy"] for point in points]),
        }
        for points in [*rows, reached]
    ]


def table(comparison: dict[str, Any], title: str) -> str:
    """The comparison as Markdown."""
    budgets = {kind: rows for kind, rows in comparison["budgets"].items() if rows}
    row = next(row for rows in budgets.values() for row in rows.values())
    lines = [f"# {title}", "", "Made by", ""]
    lines += [f"    {command}" for command in comparison["commands"]]
    before = f"before training: {row['curve'][0]['accuracy']:.1%}"
    lines += [
        "",
        f"Greedy accuracy on n = {row['n']} test problems; {before}. Interval of a mean: Student's t over "
        f"seeds. Difference: to `{comparison['against']}`, paired by seed and problem, with the interval of "
        "the crossed bootstrap; p: paired t-test over seeds, adjusted by Holm over the finalists, which "
        "are the methods with the most seeds.",
    ]
    if comparison["seen"]:
        lines[-1] += (
            f" All methods share one base, but accuracies are not of new problems: {comparison['seen']}."
        )
    if any(SLOWDOWN in command for command in comparison["commands"]):
        lines[-1] += (
            f" Seconds are those of the machine of the first command; after `{SLOWDOWN.strip()}` stands how "
            "many times as long another took for what the folder held already, by which its seconds are "
            "divided; several numbers if the command was begun more than once."
        )
    for kind, rows in budgets.items():
        lines += [
            "",
            f"## At {comparison['limits'][kind]:,.10g} {UNITS[kind]} a run",
            "",
            *_rows(comparison, kind, rows),
        ]
    return "\n".join(lines) + "\n"


def _rows(comparison: dict[str, Any], kind: str, rows: dict[str, Any]) -> list[str]:
    other = "seconds" if kind == "samples" else "samples"
    lines = [
        f"| method | seeds | accuracy (%) | 95 % | difference | 95 % | p | {other} | chosen by the search |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        difference = row["difference"]
        name = label + (f" ({len(row['diverged'])} diverged)" if row["diverged"] else "")
        paired = ["", "", ""]
        if label != comparison["against"] and difference["mean"] is not None:
            p = difference["p_holm"]
            paired = [
                f"{100 * difference['mean']:+.1f}",
                _range(difference["ci95"], "+"),
                "" if p is None else f"{p:.2g}",
            ]
        chosen = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in row["chosen"].items())
        cells = [name, str(len(row["by_seed"])), f"{100 * row['mean']:.1f}", _range(row["ci95"]), *paired]
        lines.append("| " + " | ".join([*cells, f"{row[other]:,.0f}", chosen]) + " |")
    return lines


def _range(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"
