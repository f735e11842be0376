"""The figures of a report, each a few panels; what has no data is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from egspo.report.denoising import advantages, entropy, phase_legend, phases
from egspo.report.drawing import (
    PALETTE,
    Panel,
    bin_edges,
    colours,
    curve,
    histogram,
    line_legend,
    metric_panel,
    panel,
    tinted,
)
from egspo.report.read import Row, Run, interval, number

LINES = ("-", "--", ":", "-.")
TIMES = ("time/rollout", "time/reward", "time/update")


@dataclass(frozen=True)
class Figure:
    title: str
    panels: tuple[Panel, ...]


def draw(runs: Sequence[Run]) -> list[Figure]:
    """All figures for which the runs hold data."""
    panels = {
        "Learning curve": learning(runs),
        "Rewards in detail": rewards(runs),
        "Entropy along denoising": entropy(runs),
        "Step advantages": advantages(runs),
        "Optimisation": optimisation(runs),
        "Where the time goes": [timing(runs)],
    }
    figures = [Figure(title, tuple(p for p in found if p is not None)) for title, found in panels.items()]
    return [figure for figure in figures if figure.panels]


def learning(runs: Sequence[Run]) -> list[Panel | None]:
    # Runs may differ in samples per iteration: only at equal samples are they comparable.
    samples = len(runs) > 1 and all(run.last("samples") is not None for run in runs)
    axis, label = ("samples", "samples seen") if samples else ("step", "training step")

    def reward(axes):
        for run, colour in tinted(runs):
            x, mean = run.series("reward/mean", axis)
            x_std, std = run.series("reward/std", axis)
            curve(axes, x, mean, colour, spread=std if np.array_equal(x, x_std) else None)

    def validation(axes):
        for run, colour in tinted(runs):
            _validation_curve(axes, run, colour, axis)

    return [
        panel("Reward during training", REWARD, (label, "reward"), reward),
        panel("Validation accuracy", VALIDATION, (label, "accuracy (%)"), validation),
        metric_panel(runs, "loss/sft", "Fine-tuning loss", "loss (nats)", SFT_LOSS),
    ]


REWARD = (
    "Rising is learning: each line is the mean reward of an iteration's samples (faint: as recorded; bold: "
    "averaged over neighbouring iterations), and the band is one standard deviation of the samples to either "
    "side."
)
VALIDATION = (
    "Share of validation problems solved, measured now and then during training; bars are 95 % intervals, "
    "and points whose bars overlap much are not safely different."
)
SFT_LOSS = "Lower is better: the weighted negative log-likelihood of the training answers' masked tokens."


def _validation_curve(axes, run: Run, colour: str, axis: str) -> None:
    points = run.validations
    if not points:
        return
    x = np.array([point["step"] for point in points], dtype=float)
    if axis == "samples":
        steps, samples = run.series("samples")
        x = np.interp(x, np.append(0, steps), np.append(0, samples))
    y = np.array([point["accuracy"] for point in points])
    low, high = np.array([interval(point) or (point["accuracy"],) * 2 for point in points]).T
    bars = 100 * np.clip([y - low, high - y], 0, None)
    axes.errorbar(x, 100 * y, yerr=bars, color=colour, marker="o", markersize=3.5, capsize=2, elinewidth=0.9)


def rewards(runs: Sequence[Run]) -> list[Panel | None]:
    keys = dict.fromkeys(key for run in runs for key in run.metric_keys("reward"))
    parts = [key for key in keys if key not in ("reward/mean", "reward/std", "reward/zero_std_fraction")]
    styles = {key.partition("/")[2]: LINES[place % len(LINES)] for place, key in enumerate(parts)}

    def by_part(axes):
        for run, colour in tinted(runs):
            # A single run's colour is free to tell the parts apart.
            shades = colours(len(styles)) if len(runs) == 1 else [colour] * len(styles)
            for (name, style), shade in zip(styles.items(), shades, strict=True):
                curve(axes, *run.series(f"reward/{name}"), shade, linestyle=style, label=name)
        if len(runs) > 1:
            line_legend(axes, styles)
        elif styles:
            axes.legend()

    return [
        panel("Reward of logged samples", DISTRIBUTION, ("reward", "share of samples"), _distribution(runs)),
        panel("Reward parts", PARTS, ("training step", "mean"), by_part),
        metric_panel(runs, "reward/zero_std_fraction", "Groups with equal rewards", "share of groups", EQUAL),
    ]


DISTRIBUTION = (
    "How the rewards of logged samples spread in the first and in the last third of training: weight moving "
    "to the right is progress."
)
PARTS = "What the reward is made of: the mean of each part over an iteration's samples, before weighting."
EQUAL = (
    "Share of prompts whose completions all earned the same reward and so teach nothing; close to one, the "
    "task is too hard, too easy, or the policy has stopped exploring."
)


def _distribution(runs: Sequence[Run]):
    def paint(axes):
        values = [value for run in runs for value in _rewards(run.transcripts)]
        if not values:
            return
        edges = bin_edges(min(values), max(values), most=17)
        for run, colour in tinted(runs):
            for name, rows in phases(run):
                histogram(axes, _rewards(rows), edges, colour, name)
        phase_legend(axes, runs)

    return paint


def _rewards(rows: Sequence[Row]) -> list[int | float]:
    return [row["reward"] for row in rows if number(row.get("reward")) is not None]


def optimisation(runs: Sequence[Run]) -> list[Panel | None]:
    return [
        metric_panel(runs, "loss/policy", "Policy loss", "loss", POLICY),
        metric_panel(runs, "optim/grad_norm", "Gradient norm", "norm", GRADIENT),
        metric_panel(runs, "loss/clip_fraction", "Clip fraction", "share of steps", CLIP),
        metric_panel(runs, "loss/kl", "Distance to the reference", "KL (nats)", KL),
        metric_panel(runs, "optim/learning_rate", "Learning rate", "learning rate", RATE),
    ]


POLICY = "What the optimiser minimises; in RL it need not fall for the policy to improve."
GRADIENT = "Length of the gradient before clipping; repeated spikes mean instability."
CLIP = (
    "Share of trained steps whose probability ratio left the trusted range; high values ask for a smaller "
    "learning rate or fewer updates per rollout."
)
KL = "How far the policy has moved away from the model it started from."
RATE = "The step size of the optimiser along its schedule."


def timing(runs: Sequence[Run]) -> Panel | None:
    parts = [key for key in TIMES if any(run.last(key) is not None for run in runs)]
    if len(parts) < 2:
        return None
    seconds = np.array([[_mean(run.series(key)[1]) for key in parts] for run in runs])
    total = seconds.sum(1)

    def paint(axes):
        _stack(axes, 100 * seconds / np.where(total > 0, total, 1)[:, None], [key[5:] for key in parts])
        names = [run.name if len(run.name) <= 20 else run.name[:19] + "…" for run in runs]
        ticks = [f"{name}\n{value:.3g} s" for name, value in zip(names, total, strict=True)]
        axes.set_yticks(np.arange(len(runs)), ticks)

    height = 1.1 + 0.45 * len(runs)
    return panel("Time per iteration", TIMING, ("share of time (%)", ""), paint, height)


def _stack(axes, shares: np.ndarray, names: Sequence[str]) -> None:
    """Horizontal bars [runs, names] that add up to 100."""
    left = np.cumsum(shares, axis=1) - shares
    rows = np.arange(len(shares))
    # From the end of the palette, so that parts do not look like runs.
    for name, colour, width, start in zip(names, PALETTE[4:], shares.T, left.T, strict=False):
        axes.barh(rows, width, left=start, color=colour, alpha=0.75, label=name, height=0.6)
        for row in rows[width >= 8]:
            middle = start[row] + width[row] / 2
            axes.text(middle, row, f"{width[row]:.0f} %", ha="center", va="center")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.figure.legend(loc="outside upper center", ncols=len(names))


TIMING = (
    "Mean share of an iteration that goes into sampling completions (rollout), grading them (reward) and "
    "training on them (update), with the mean seconds of an iteration at the left."
)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
