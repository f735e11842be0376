"""What the curves of a comparison say: scores at each budget, paired differences, a table."""

from collections.abc import Sequence
from typing import Any

import torch

from egspo.compare.results import Results
from egspo.compare.worker import unpack
from egspo.ops.intervals import student_interval
from egspo.ops.paired import bootstrap_interval, holm, paired_p

Point = dict[str, Any]
UNITS = {"samples": "samples", "seconds": "processor seconds"}


def summarise(results: Results, against: str, command: str) -> dict[str, Any]:
    """``comparison.json``: ``command, against, plan, budgets, methods``.

    ``budgets`` has, for each kind of budget and each method with a run, the accuracy by seed, its mean with
    Student's interval over seeds, and the paired difference to ``against`` over the seeds that both have,
    with its bootstrap interval and its p, adjusted by Holm over the methods (`egspo.ops.paired`).
    """
    shared = results.plan["shared"]
    curves = {label: found for label in results.labels if (found := results.curves(label))}
    limits = {kind: shared["budget"][kind] for kind in UNITS if shared["budget"][kind]}
    return {
        "command": command,
        "against": against,
        "plan": results.plan,
        "limits": limits,
        "budgets": {kind: _at_budget(curves, kind, limit, against) for kind, limit in limits.items()},
        "methods": {label: _method(results, label, found) for label, found in curves.items()},
    }


def _at_budget(
    curves: dict[str, dict[int, list[Point]]], kind: str, limit: int | float, against: str
) -> dict:
    reached = {
        label: {seed: _reading(points, kind, limit) for seed, points in found.items()}
        for label, found in curves.items()
    }
    rows = {label: _score(points, reached.get(against, {})) for label, points in reached.items()}
    tested = [label for label in rows if label != against and rows[label]["difference"]["p"] is not None]
    adjusted = holm([rows[label]["difference"]["p"] for label in tested])
    for label, p in zip(tested, adjusted, strict=True):
        rows[label]["difference"]["p_holm"] = p
    return dict(sorted(rows.items(), key=lambda item: -item[1]["mean"]))


def _reading(points: Sequence[Point], kind: str, limit: int | float) -> Point:
    """The evaluation at which a budget was first spent; the last one of a run that diverged before."""
    return next((point for point in points if point[kind] >= limit), points[-1])


def _score(points: dict[int, Point], others: dict[int, Point]) -> dict[str, Any]:
    by_seed = {seed: point["accuracy"] for seed, point in points.items()}
    values = list(by_seed.values())
    both = [seed for seed in points if seed in others and points[seed]["n"] == others[seed]["n"]]
    pairs = [points[seed]["accuracy"] - others[seed]["accuracy"] for seed in both]
    interval = None
    if both:
        ours, theirs = (_verdicts(of, both) for of in (points, others))
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


def _verdicts(points: dict[int, Point], seeds: Sequence[int]) -> torch.Tensor:
    return torch.tensor([unpack(points[seed]["correct"]) for seed in seeds]).double()


def _mean(points, key: str) -> float:
    values = [point[key] for point in points]
    return sum(values) / len(values)


def _method(results: Results, label: str, curves: dict[int, list[Point]]) -> dict[str, Any]:
    steps = [point["step"] for point in next(iter(curves.values()))]
    common = [step for step in steps if all(any(p["step"] == step for p in c) for c in curves.values())]
    rows = []
    for step in common:
        points = [next(p for p in c if p["step"] == step) for c in curves.values()]
        accuracy = [point["accuracy"] for point in points]
        rows.append(
            {
                "step": step,
                "samples": points[0]["samples"],
                "seconds": _mean(points, "seconds"),
                "accuracy": sum(accuracy) / len(accuracy),
                "ci95": student_interval(accuracy),
            }
        )
    return {
        "chosen": results.chosen(label) or {},
        "diverged": [seed for seed, points in curves.items() if points[-1].get("diverged")],
        "curve": rows,
    }


def table(comparison: dict[str, Any], title: str) -> str:
    """The comparison as Markdown."""
    first = next(iter(comparison["budgets"].values()))
    n = next(iter(first.values()))["n"]
    base = next(iter(comparison["methods"].values()))["curve"][0]["accuracy"]
    lines = [f"# {title}", "", f"Made by `{comparison['command']}`.", ""]
    lines.append(
        f"Greedy accuracy on n = {n} test problems; before training: {base:.1%}. Interval of a mean: "
        f"Student's t over seeds. Difference: to `{comparison['against']}`, paired by seed and problem, with "
        "the interval of the crossed bootstrap; p: paired t-test over seeds, adjusted by Holm."
    )
    for kind, rows in comparison["budgets"].items():
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
        method, difference = comparison["methods"][label], row["difference"]
        name = label + (f" ({len(method['diverged'])} diverged)" if method["diverged"] else "")
        paired = ["", "", ""]
        if label != comparison["against"] and difference["mean"] is not None:
            p = difference["p_holm"]
            paired = [
                f"{100 * difference['mean']:+.1f}",
                _range(difference["ci95"], "+"),
                "" if p is None else f"{p:.2g}",
            ]
        chosen = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in method["chosen"].items())
        cells = [name, str(len(row["by_seed"])), f"{100 * row['mean']:.1f}", _range(row["ci95"]), *paired]
        lines.append("| " + " | ".join([*cells, f"{row[other]:,.0f}", chosen]) + " |")
    return lines


def _range(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"
