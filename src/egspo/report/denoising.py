"""Figures of what happens inside a trajectory: entropies, selected steps, their advantages."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from egspo.report.drawing import (
    INK,
    Panel,
    curve,
    from_zero,
    histogram,
    line_legend,
    metric_panel,
    panel,
    step_edges,
    tinted,
)
from egspo.report.read import Row, Run, number


def phases(run: Run) -> list[tuple[str, Sequence[Row]]]:
    """Transcripts of the first and of the last third of the training steps that logged any."""
    steps = sorted({row["step"] for row in run.transcripts})
    if len(steps) < 2:
        return [("all", run.transcripts)] if steps else []
    third = max(1, len(steps) // 3)
    early = [row for row in run.transcripts if row["step"] <= steps[third - 1]]
    late = [row for row in run.transcripts if row["step"] >= steps[-third]]
    return [("early", early), ("late", late)]


def phase_legend(axes: Axes, runs: Sequence[Run]) -> None:
    names = {name for run in runs for name, _ in phases(run)}
    line_legend(axes, {name: style for name, style in (("early", "--"), ("late", "-")) if name in names})


def selected(rows: Sequence[Row]) -> list[Row]:
    """The selected steps of all rows."""
    return [
        step for row in rows for step in row.get("selected") or [] if number(step.get("step")) is not None
    ]


def num_steps(runs: Sequence[Run]) -> int:
    """Denoising steps of the longest trajectory among the transcripts."""
    rows = [row for run in runs for row in run.transcripts]
    lengths = [len(row.get("entropy") or []) for row in rows]
    return max([1, *lengths, *(int(step["step"]) + 1 for step in selected(rows))])


def entropy(runs: Sequence[Run]) -> list[Panel | None]:
    span = (-0.5, num_steps(runs) - 0.5)

    def profile(axes):
        for run, colour in tinted(runs):
            for name, rows in phases(run):
                _profile(axes, rows, colour, "--" if name == "early" else "-")
        axes.set_xlim(*span)
        from_zero(axes)
        phase_legend(axes, runs)

    def chosen(axes):
        for run, colour in tinted(runs):
            for name, rows in phases(run):
                index = [step["step"] for step in selected(rows)]
                histogram(axes, index, step_edges(num_steps(runs)), colour, name)
        axes.set_xlim(*span)
        phase_legend(axes, runs)

    def over_training(axes):
        for run, colour in tinted(runs):
            curve(axes, *run.series("rollout/entropy_selected"), colour)
            curve(axes, *run.series("rollout/entropy_all"), colour, linestyle=":")
        from_zero(axes)
        line_legend(axes, {"selected steps": "-", "all steps": ":"})

    return [
        panel("Entropy by denoising step", PROFILE, ("denoising step", "joint entropy (nats)"), profile),
        panel("Steps selected for training", CHOSEN, ("denoising step", "share of selected steps"), chosen),
        panel("Entropy over training", DURING, ("training step", "mean entropy (nats)"), over_training),
        metric_panel(runs, "steps/selected_mean_index", "Mean selected step", "denoising step", INDEX),
    ]


PROFILE = (
    "How undecided the policy is at each denoising step, early and late in training, over the steps that "
    "still shape the text; the larger a dot, the more often that step was selected for training."
)
CHOSEN = (
    "Which denoising steps logged samples were trained on, early and late in training; heights sum to one."
)
DURING = (
    "Selected steps should lie well above all steps, or selection gains little; a fall towards zero means "
    "that the policy has stopped exploring."
)
INDEX = "Where in the denoising process the selected steps lie on average: low is early, high is late."


def _profile(axes, rows: Sequence[Row], colour: str, style: str) -> None:
    """Mean entropy of each step over the samples in which it is informative, with dots sized by selection."""
    rows = [row for row in rows if row.get("entropy")]
    if not rows:
        return
    length = max(len(row["entropy"]) for row in rows)
    table = np.full((len(rows), length), np.nan)
    for place, row in enumerate(rows):
        last = number(row.get("last_step"))
        values = row["entropy"][: length if last is None else int(last) + 1]
        table[place, : len(values)] = [np.nan if number(value) is None else value for value in values]
    known = ~np.isnan(table)
    mean = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    axes.plot(np.arange(length), mean, color=colour, linestyle=style)
    picked = np.bincount([int(step["step"]) for step in selected(rows)], minlength=length)[:length]
    axes.scatter(np.arange(length), mean, s=110 * picked / len(rows), color=colour, alpha=0.6, linewidth=0)


def advantages(runs: Sequence[Run]) -> list[Panel | None]:
    def by_step(axes):
        edges = step_edges(num_steps(runs), most=16)
        for place, (run, colour) in enumerate(tinted(runs)):
            _quantiles(axes, run, edges, colour, shift=(place + 1) / (len(runs) + 1) - 0.5)
        axes.set_xlim(edges[0], edges[-1])

    return [
        panel("Advantage by denoising step", BY_STEP, ("denoising step", "advantage"), by_step),
        metric_panel(runs, "steps/advantage_abs", "Size of the advantages", "mean of |advantage|", SIZE),
    ]


BY_STEP = (
    "Advantages of the selected steps of logged samples: the dot is the median, the thick bar holds the "
    "middle half and the thin one nine tenths; longer bars mean a stronger training signal at that step."
)
SIZE = "How strong the training signal is on average; near zero there is nothing left to learn from."


def _quantiles(axes, run: Run, edges: np.ndarray, colour: str, shift: float) -> None:
    steps = [step for step in selected(run.transcripts) if number(step.get("advantage")) is not None]
    if not steps:
        return
    bins = np.digitize([step["step"] for step in steps], edges) - 1
    values = np.array([step["advantage"] for step in steps])
    filled = np.unique(bins)
    x = (edges[filled] + edges[filled + 1]) / 2 + shift * (edges[1] - edges[0]) * 0.8
    low, quarter, middle, three, high = np.array(
        [np.quantile(values[bins == place], (0.05, 0.25, 0.5, 0.75, 0.95)) for place in filled]
    ).T
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.vlines(x, low, high, color=colour, linewidth=0.9)
    axes.vlines(x, quarter, three, color=colour, linewidth=3, alpha=0.6)
    axes.plot(x, middle, "o", color=colour, markersize=3)
