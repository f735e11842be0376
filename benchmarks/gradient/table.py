"""The table of a comparison, as Markdown and JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradient.arms import BASELINE, Arm
from gradient.measure import Plan, Store
from gradient.quality import with_errors

HEAD = (
    "| arm | canvases a completion: rollout + update (+ old, reference) | cosine of the mean "
    "| cosine of a batch | efficiency | SNR of a batch "
    "| SNR a pass, x EGSPO-SA | SNR an update pass, x EGSPO-SA |"
)


SETUP = "setup.json"


def summarise(store: Store, arms: Sequence[Arm], plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    """All quantities of all finished arms, written to ``summary.json`` and ``README.md``."""
    measured, found = store.blocks(plan), {}
    for arm in arms:
        if arm.name not in measured:
            continue
        values = with_errors(measured[arm.name], measured[BASELINE])
        found[arm.name] = {
            "settings": arm.settings,
            "also": list(arm.also),
            "old_pass": arm.old,
            "reference_pass": arm.reference,
            **{key: {"value": value, "half_width": half} for key, (value, half) in values.items()},
        }
    summary = about | {"arms": found}
    (store.folder / "summary.json").write_text(
        json.dumps(_finite(summary), indent=1) + "\n", encoding="utf-8"
    )
    (store.folder / "README.md").write_text(_page(summary, about), encoding="utf-8")
    return summary


def _page(summary: dict[str, Any], about: dict[str, Any]) -> str:
    completions = about["completions"]
    exact = about["reference"] == "enumerated"
    head = HEAD + (" bias (95 % interval) |" if exact else "")
    lines = [
        f"# Gradient quality: {about['label']}",
        "",
        "Made by",
        "",
        *(f"    {command}" for command in about["commands"]),
        "",
        f"(the last on {about['machine']}); {about['batches']} batches of {completions} completions, "
        f"reference: {about['reference']}. +- is half a 95 % interval. docs/gradient_quality.md defines the "
        "columns.",
        "",
        head,
        "|" + "---|" * (head.count("|") - 1),
    ]
    rows = sorted(summary["arms"].items(), key=lambda item: -_sortable(item[1]))
    same = [f"{name} is also {', '.join(row['also'])}" for name, row in rows if row["also"]]
    note = ["", f"Arms of the same settings are measured once: {'; '.join(same)}."] if same else []
    return "\n".join([*lines, *(_row(name, row, completions, exact) for name, row in rows), *note, ""])


def _row(name: str, row: dict[str, Any], completions: int, exact: bool) -> str:
    rollout, update = (row[f"{key}_canvases"]["value"] / completions for key in ("rollout", "update"))
    more = "".join(f" + {update:.2f}" for key in ("old_pass", "reference_pass") if row[key])
    ratios = ("snr_per_1000_passes", "snr_per_1000_update_passes")
    cells = [
        name,
        f"{rollout:.1f} + {update:.2f}" + (f" (+{more.removeprefix(' +')})" if more else ""),
        *(_cell(row, key, 2) for key in ("cosine_of_mean",)),
        *(_cell(row, key, 3) for key in ("cosine", "efficiency", "snr")),
        *(_cell(row, f"{key}_ratio", 2) for key in ratios if f"{key}_ratio" in row),
    ]
    if exact:
        cells.append(_bias(row))
    return "| " + " | ".join(cells) + " |"


def _bias(row: dict[str, Any]) -> str:
    """The norm from the interval of its square, which may reach below 0."""
    square, half = row["bias_square"]["value"], row["bias_square"]["half_width"]
    low, value, high = (math.sqrt(max(0.0, square + d)) for d in (-half, 0.0, half))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _cell(row: dict[str, Any], key: str, digits: int) -> str:
    value, half = row[key]["value"], row[key]["half_width"]
    return "-" if not math.isfinite(value) else f"{value:.{digits}f} +- {half:.{digits}f}"


def _sortable(row: dict[str, Any]) -> float:
    value = row["snr_per_1000_passes"]["value"]
    return value if math.isfinite(value) else -math.inf


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def own_arms(folder: Path) -> dict[str, str]:
    """Lines of the arms that earlier command lines added."""
    file = folder / SETUP
    return json.loads(file.read_text(encoding="utf-8"))["own_arms"] if file.is_file() else {}


def write_setup(folder: Path, about: dict[str, Any], arms: Sequence[Arm], own: dict[str, str]) -> None:
    """Say what is measured, and refuse to mix it with what was measured otherwise.

    Raises:
        ValueError: if the folder holds measurements of another setup, or of an arm with other settings.
    """
    file = folder / SETUP
    fixed = {
        key: about[key] for key in ("model", "task", "seed", "batches", "blocks", "completions", "reference")
    }
    settings = {arm.name: arm.settings for arm in arms}
    if file.is_file():
        old = json.loads(file.read_text(encoding="utf-8"))
        for key, value in fixed.items():
            if old[key] != json.loads(json.dumps(value)):
                was = f"{folder} was measured with {old[key]!r}"
                raise ValueError(f"{key}: {value!r}, but {was}; give another --label")
        for arm in arms:
            if not arm.agrees(old["arms"].get(arm.name, arm.settings)):
                raise ValueError(
                    f"--arms: {arm.name} was measured with other settings in {folder}; rename it"
                )
        settings = old["arms"] | settings
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(fixed | {"own_arms": own, "arms": settings}, indent=1) + "\n", encoding="utf-8"
    )
