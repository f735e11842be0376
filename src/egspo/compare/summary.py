"""What the curves of a comparison say: scores at each budget, paired differences, a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from egspo.compare.results import SLOWDOWN, Results
from egspo.compare.worker import unpack
from egspo.ops.intervals import student_interval
from egspo.ops.paired import bootstrap_interval, holm, paired_p

Point = dict[str, Any]
Other = tuple[dict[int, Point], dict[str, Any]]
"""Readings and score of runs that were chosen for another budget alone, but spent this one too."""
KINDS = ("samples", "seconds")
OTHERS = (
    "What the search chose for the other budget alone, read at this one: a short search may have chosen "
    "worse than it could have."
)


def summarise(results: Results, against: str, commands: Sequence[str], seen: str = "") -> dict[str, Any]:
    """``comparison.json``: ``commands, against, seen, plan, limits, units, budgets, others``.

    ``seen``: which problems the base was trained on, in words (`egspo.seen`).

    ``budgets`` has, for each kind of budget and each method with a run of what the search chose for it, the
    accuracy by seed, its mean with Student's interval over seeds, the learning curve, and the paired
    difference to ``against`` over the seeds that both have, with its bootstrap interval and its p, adjusted
    by Holm over the finalists (`egspo.ops.paired`): the methods that have the most seeds.

    ``others`` has the same of what the search chose for another budget alone, where those runs spent this one
    too: a short search may choose worse than it could have. Where ``against`` is among them, every method
    also has its ``difference_to_other``.

    Where ``against`` is not the best on the mean, all others have their ``difference_to_best``. It is a
    little too large, for the best of several means has had luck besides.
    """
    shared = results.plan["shared"]
    limits = {kind: shared["budget"][kind] for kind in KINDS if shared["budget"][kind]}
    others = {kind: _others(results, kind, limit) for kind, limit in limits.items()}
    budgets = {
        kind: _at_budget(results, kind, limit, against, others[kind]) for kind, limit in limits.items()
    }
    return {
        "commands": list(commands),
        "against": against,
        "seen": seen,
        "plan": results.plan,
        "limits": limits,
        "units": units(results),
        "budgets": budgets,
        "others": {
            kind: _sorted({label: row for label, (_, row) in found.items()}) for kind, found in others.items()
        },
    }


def units(results: Results) -> dict[str, str]:
    """What is counted, by kind of budget: beside a GPU runs are timed by the clock."""
    curves = (curve for trial in results.trials for curve in results.curves(trial).values())
    wall = any(points[-1].get("clock") == "wall" for points in curves)
    return {"samples": "samples", "seconds": "seconds" if wall else "processor seconds"}


def _others(results: Results, kind: str, limit: int | float) -> dict[str, Other]:
    found = {}
    for trial in results.trials:
        curves = results.curves(trial) if trial.chosen and kind not in trial.chosen else {}
        if curves and all(points[-1][kind] >= limit for points in curves.values()):
            points = {seed: reading(of, kind, limit) for seed, of in curves.items()}
            found[trial.label] = (points, _score(points) | {"chosen": trial.settings})
    return found


def _at_budget(
    results: Results, kind: str, limit: int | float, against: str, others: Mapping[str, Other]
) -> dict[str, Any]:
    chosen = {trial.label: trial for trial in results.trials if kind in trial.chosen}
    curves = {label: found for label, trial in chosen.items() if (found := results.curves(trial))}
    reached = {
        label: {seed: reading(points, kind, limit) for seed, points in found.items()}
        for label, found in curves.items()
    }
    rows = {}
    for label, points in reached.items():
        rows[label] = _score(points) | {
            "difference": _difference(points, {} if label == against else reached.get(against, {})),
            "chosen": chosen[label].settings,
            "diverged": [
                seed for seed, point in points.items() if point.get("diverged") and point[kind] < limit
            ],
            "curve": _mean_curve(list(curves[label].values()), list(points.values()), kind, limit),
        }
        if against in others:
            rows[label]["difference_to_other"] = _difference(points, others[against][0])
    _adjust({label: row["difference"] for label, row in rows.items() if label != against})
    rows = _sorted(rows)
    best = next(iter(rows), against)
    for label in rows.keys() - {best} if best != against else ():
        rows[label]["difference_to_best"] = _difference(reached[label], reached[best])
    return rows


def _sorted(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
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


def _score(points: dict[int, Point]) -> dict[str, Any]:
    by_seed = {seed: point["accuracy"] for seed, point in points.items()}
    values = list(by_seed.values())
    return {
        "mean": sum(values) / len(values),
        "ci95": student_interval(values),
        "by_seed": by_seed,
        "n": next(iter(points.values()))["n"],
        "samples": _mean(points.values(), "samples"),
        "seconds": _mean(points.values(), "seconds"),
    }


def _difference(points: dict[int, Point], others: dict[int, Point]) -> dict[str, Any]:
    """Of accuracies, over the seeds that both have on the same problems."""
    both = [seed for seed in points if seed in others and points[seed]["n"] == others[seed]["n"]]
    pairs = [points[seed]["accuracy"] - others[seed]["accuracy"] for seed in both]
    interval = None
    if both:
        ours, theirs = (verdicts(of, both) for of in (points, others))
        interval = bootstrap_interval(ours - theirs)
    return {
        "mean": sum(pairs) / len(pairs) if pairs else None,
        "ci95": interval,
        "seeds": both,
        "p": paired_p(pairs),
        "p_holm": None,
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
        f"{_decoding(comparison)} on n = {row['n']} test problems; {before}. Interval of a mean: "
        f"Student's t over seeds. Difference: to `{comparison['against']}`, paired by seed "
        "and problem, with the interval of the crossed bootstrap; p: paired t-test over seeds, adjusted by "
        "Holm over the finalists, which are the methods with the most seeds.",
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
            f"## At {comparison['limits'][kind]:,.10g} {comparison['units'][kind]} a run",
            "",
            *_rows(comparison, kind, rows),
        ]
        if comparison["others"][kind]:
            lines += ["", OTHERS, "", *_other_rows(comparison, kind)]
    return "\n".join(lines) + "\n"


def _decoding(comparison: dict[str, Any]) -> str:
    temperature = comparison["plan"]["shared"]["base"].get("eval", {}).get("temperature", 0)
    return f"Accuracy at temperature {temperature:g}" if temperature else "Greedy accuracy"


def _rows(comparison: dict[str, Any], kind: str, rows: dict[str, Any]) -> list[str]:
    spent = "seconds" if kind == "samples" else "samples"
    against = comparison["against"]
    more = _further(rows, against)
    heads = ["method", "seeds", "accuracy (%)", "95 %", "difference", "95 %", "p"]
    heads += [head for name, to in more.values() for head in (f"{name} `{to}`", "95 %")]
    lines = _header([*heads, spent, "chosen by the search"])
    for label, row in rows.items():
        name = label + (f" ({len(row['diverged'])} diverged)" if row["diverged"] else "")
        cells = [name, *_mean_cells(row), *(["", "", ""] if label == against else _paired(row["difference"]))]
        cells += [cell for key in more for cell in (_paired(row[key])[:2] if key in row else ["", ""])]
        lines.append(_line([*cells, f"{row[spent]:,.0f}", _chosen(row)]))
    return lines


def _further(rows: Mapping[str, Mapping[str, Any]], against: str) -> dict[str, tuple[str, str]]:
    """Which differences a table has besides: keys of rows, each with words and a method."""
    known = {
        "difference_to_other": ("to the other", against),
        "difference_to_best": ("to the best,", next(iter(rows))),
    }
    return {key: head for key, head in known.items() if any(key in row for row in rows.values())}


def _other_rows(comparison: dict[str, Any], kind: str) -> list[str]:
    lines = _header(["method", "seeds", "accuracy (%)", "95 %", "chosen for the other budget"])
    rows = comparison["others"][kind].items()
    return lines + [_line([label, *_mean_cells(row), _chosen(row)]) for label, row in rows]


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_cells(row: dict[str, Any]) -> list[str]:
    return [str(len(row["by_seed"])), f"{100 * row['mean']:.1f}", _range(row["ci95"])]


def _paired(difference: dict[str, Any]) -> list[str]:
    """A difference, its interval and its p."""
    if difference["mean"] is None:
        return ["", "", ""]
    p = difference["p_holm"]
    return [
        f"{100 * difference['mean']:+.1f}",
        _range(difference["ci95"], "+"),
        "" if p is None else f"{p:.2g}",
    ]


def _chosen(row: dict[str, Any]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in row["chosen"].items())


def _range(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"
