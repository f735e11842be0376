"""Tables, as HTML: every piece of text that comes from a file goes through ``text``."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from egspo.report.drawing import colours
from egspo.report.read import Row, Run, before_after, interval, is_validation, number

CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters are shown by their pictures: a model may write any byte."""
KNOWN = (
    "task",
    "model",
    "split",
    "n",
    "num_problems",
    "correct",
    "accuracy",
    "ci95",
    "reward",
    "counts",
    "fingerprints",
    "step",
    "name",
    "file",
)
SUMMARY = ("Run", "Objective", "Task", "Model", "Before (%)", "After (%)", "Change")
SUMMARY += ("Final reward", "Final loss", "Iterations", "Samples", "Time", "Peak memory")
EVALUATIONS = ("Run", "Evaluation", "Task", "Split", "Step", "Problems", "Accuracy (%)")
EVALUATIONS += ("Finer measures", "Settings")


def text(value: Any) -> str:
    """A value as harmless HTML text."""
    return html.escape(str(value).translate(CONTROL))


def table(header: Sequence[str], rows: Iterable[Sequence[str | None]], numeric: Sequence[str] = ()) -> str:
    """A table of ready HTML cells, without the columns in which no row has anything."""
    rows = [list(row) for row in rows]
    kept = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    marks = [' class="number"' if name in numeric else "" for name in header]
    head = "".join(f"<th{marks[place]}>{header[place]}</th>" for place in kept)
    lines = ["".join(f"<td{marks[place]}>{row[place] or ''}</td>" for place in kept) for row in rows]
    return (
        f'<div class="wide"><table>\n<tr>{head}</tr>\n'
        + "\n".join(f"<tr>{line}</tr>" for line in lines)
        + "\n</table></div>"
    )


def summary(runs: Sequence[Run]) -> str:
    """What each run is, what it reached, and what that took."""
    # What all runs share stands under the title.
    differing = [name for name in runs[0].kind if len({run.kind[name] for run in runs}) > 1]
    rows = []
    for run, label in zip(runs, labels(runs), strict=True):
        before, after = before_after(run)
        change = None if None in (before, after) else f"{100 * (after['accuracy'] - before['accuracy']):+.1f}"
        rows.append(
            (
                label,
                *(text(run.kind[name] or "") if name in differing else None for name in run.kind),
                _accuracy(before),
                _accuracy(after),
                change,
                shown(run.last("reward/mean"), ".3f"),
                shown(run.last("loss/sft"), ".3f"),
                f"{len(run.metrics):,}",
                shown(run.last("samples"), ","),
                _duration(run.last("time")),
                shown(run.last("memory/peak_gb"), ".1f", " GB"),
            )
        )
    note = "Before, after: accuracy with its 95 % interval; reward and loss are those of the last iteration."
    return f"<h2>Summary</h2>\n{table(SUMMARY, rows, numeric=SUMMARY[4:])}\n<p>{note}</p>"


def labels(runs: Sequence[Run]) -> list[str]:
    """Names of the runs, with the colours of their curves if there are several."""
    if len(runs) == 1:
        return [text(runs[0].name)]
    swatches = (f'<i class="run" style="background:{colour}"></i>' for colour in colours(len(runs)))
    return [swatch + text(run.name) for swatch, run in zip(swatches, runs, strict=True)]


def _accuracy(evaluation: Row | None) -> str | None:
    if evaluation is None:
        return None
    ends = interval(evaluation)
    return f"{100 * evaluation['accuracy']:.1f}" + (
        f" <small>[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]</small>" if ends else ""
    )


def shown(value: int | float | None, form: str, unit: str = "") -> str | None:
    """A number in a table, or nothing."""
    return None if value is None else f"{value:{form}}{unit}"


def _duration(seconds: int | float | None) -> str | None:
    if seconds is None:
        return None
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= size)
    return f"{seconds / (size or 1):.3g} {unit}"


def evaluations(runs: Sequence[Run]) -> str:
    """All evaluations; those of the validation curve folded away."""
    order = [(run, sorted(run.evaluations, key=lambda e: "after" in e["file"])) for run in runs]
    final = [(run, row) for run, rows in order for row in rows if not is_validation(row)]
    during = [(run, row) for run in runs for row in run.validations]
    parts = []
    if final:
        parts.append(_evaluation_table(final, several=len(runs) > 1))
    if during:
        head = f"<summary>Validation during training ({len(during)})</summary>"
        parts.append(f"<details>{head}{_evaluation_table(during, several=len(runs) > 1)}</details>")
    return "<h2>Evaluations</h2>\n" + "\n".join(parts) if parts else ""


def _evaluation_table(found: Sequence[tuple[Run, Row]], several: bool) -> str:
    rows = [
        (
            text(run.name) if several else None,
            text(row["file"]),
            *(row.get(key) and text(row[key]) for key in ("task", "split")),
            shown(number(row.get("step")), ","),
            shown(number(row.get("num_problems", row.get("n"))), ","),
            _accuracy(row),
            text(_finer(row)) or None,
            text(", ".join(_scalars({k: v for k, v in row.items() if k not in KNOWN}))) or None,
        )
        for run, row in found
    ]
    return table(EVALUATIONS, rows, numeric=EVALUATIONS[4:7])


def _finer(row: Row) -> str:
    """Counts, for instance of Sudoku cells, and the mean reward."""
    found = [
        f"{name}: {count.get('right')} of {count.get('of')} ({100 * count['share']:.1f} %)"
        for name, count in (row.get("counts") or {}).items()
        if number(count.get("share")) is not None
    ]
    reward = number(row.get("reward"))
    return ", ".join(found if reward is None else [*found, f"reward {reward:.3f}"])


def _scalars(settings: Row) -> Iterable[str]:
    """Decoding settings in words; what is unset or long is left to the file."""
    for name, value in flatten(settings).items():
        if isinstance(value, bool | int | float | str) and len(str(value)) <= 60:
            yield f"{name} {value}"


def flatten(settings: Row, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
