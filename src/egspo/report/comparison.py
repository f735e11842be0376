"""The page of a comparison: a table for each budget, and learning curves with bands over seeds."""

import json
from collections.abc import Mapping
from typing import Any

from egspo.report.drawing import Panel, colours, panel
from egspo.report.page import document
from egspo.report.tables import shown, table, text

FILE = "comparison.json"
AXES = {"samples": "samples seen", "seconds": "{} of training"}


def compose_comparison(name: str, comparison: Mapping[str, Any]) -> str:
    """The whole page, from what ``comparison.json`` holds (`egspo.compare.summary.summarise`)."""
    if "commands" not in comparison:
        raise ValueError(f"{name}: its comparison is of an earlier version; make it anew with egspo compare")
    methods = dict.fromkeys(label for rows in comparison["budgets"].values() for label in rows)
    tint = dict(zip(methods, colours(len(methods)), strict=True))
    panels = [_curves(comparison, kind, tint) for kind in comparison["limits"]]
    figures = "\n".join(
        f"<figure><h3>{text(p.title)}</h3>\n{p.svg}\n<figcaption>{text(p.caption)}</figcaption></figure>"
        for p in panels
        if p is not None
    )
    seen = comparison.get("seen")
    legend = "".join(f"<li>{_swatch(tint[label])}{text(label)}</li>" for label in methods)
    return document(
        name,
        [
            f"<p>Made by</p>\n<pre>{text(chr(10).join(comparison['commands']))}</pre>",
            *([f"<p>The base is not new to all problems: {text(seen)}.</p>"] if seen else []),
            *(_budget(comparison, kind, tint) for kind in comparison["limits"]),
            f'<h2>Learning curves</h2>\n<ul class="runs">{legend}</ul>',
            f'<div class="panels">\n{figures}\n</div>',
            f"<h2>Plan</h2>\n<details><summary>Settings of all runs and of each method</summary><pre>"
            f"{text(json.dumps(comparison['plan'], indent=1))}</pre></details>",
        ],
    )


def _swatch(colour: str) -> str:
    return f'<i class="run" style="background:{colour}"></i>'


def _budget(comparison: Mapping[str, Any], kind: str, tint: Mapping[str, str]) -> str:
    against, rows = comparison["against"], []
    found = comparison["budgets"][kind]
    for label, row in found.items():
        rows.append(
            (
                _swatch(tint[label]) + text(label) + _diverged(row["diverged"]),
                str(len(row["by_seed"])),
                f"{100 * row['mean']:.1f}{_range(row['ci95'])}",
                _paired(row["difference"]) if label != against else None,
                shown(row["difference"]["p_holm"], ".2g"),
                _paired(row.get("difference_to_other")),
                _paired(row.get("difference_to_best")),
                f"{row['samples']:,.0f}",
                f"{row['seconds']:,.0f}",
                text(", ".join(f"{key} {value}" for key, value in row["chosen"].items())),
            )
        )
    note = (
        f"Mean over seeds with Student's 95 % interval. Difference to {against}, paired by seed and "
        "problem, with its bootstrap interval; p of the paired t-test over seeds, adjusted by Holm over "
        "the methods with the most seeds."
    )
    head = f"At {comparison['limits'][kind]:,.10g} {_unit(comparison, kind)} a run"
    best = next(iter(found), "")
    differences = ("Difference", "p", f"To the other {text(against)}", f"To the best, {text(best)}")
    header = ("Method", "Seeds", "Accuracy (%)", *differences, "Samples", "Seconds", "Chosen by the search")
    shown_rows = table(header, rows, numeric=header[1:-1])
    return f"<h2>{text(head)}</h2>\n{shown_rows}\n<p>{text(note)}</p>" + _others(comparison, kind)


def _others(comparison: Mapping[str, Any], kind: str) -> str:
    """What was chosen for the other budget alone, read at this one."""
    found = comparison.get("others", {}).get(kind)
    if not found:
        return ""
    rows = []
    for label, row in found.items():
        rows.append(
            (
                text(label),
                str(len(row["by_seed"])),
                f"{100 * row['mean']:.1f}{_range(row['ci95'])}",
                text(", ".join(f"{key} {value}" for key, value in row["chosen"].items())),
            )
        )
    told = "Read at this budget from runs that the search chose for the other one alone"
    heads = ("Method", "Seeds", "Accuracy (%)", "Chosen for the other budget")
    return f"\n{table(heads, rows, numeric=heads[1:3])}\n<p>{told}.</p>"


def _paired(difference: Mapping[str, Any] | None) -> str | None:
    if difference is None or difference["mean"] is None:
        return None
    return f"{100 * difference['mean']:+.1f}{_range(difference['ci95'])}"


def _range(interval) -> str:
    return "" if interval is None else f" <small>[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]</small>"


def _diverged(seeds) -> str:
    return f" <small>({len(seeds)} diverged)</small>" if seeds else ""


def _curves(comparison: Mapping[str, Any], kind: str, tint: Mapping[str, str]) -> Panel | None:
    def paint(axes):
        for label, method in comparison["budgets"][kind].items():
            rows = method["curve"]
            x = [row[kind] for row in rows]
            axes.plot(
                x, [100 * row["accuracy"] for row in rows], color=tint[label], marker="o", markersize=2.5
            )
            if all(row["ci95"] for row in rows):
                low, high = ([100 * row["ci95"][end] for row in rows] for end in (0, 1))
                axes.fill_between(x, low, high, color=tint[label], alpha=0.1, linewidth=0)

    caption = "Mean over seeds on the test problems; the band is Student's 95 % interval of the mean."
    unit = _unit(comparison, kind)
    return panel(f"Accuracy by {unit}", caption, (AXES[kind].format(unit), "accuracy (%)"), paint)


def _unit(comparison: Mapping[str, Any], kind: str) -> str:
    known = {"samples": "samples", "seconds": "processor seconds"}  # as before the clock was recorded
    return comparison.get("units", known)[kind]
