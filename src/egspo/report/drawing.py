"""Panels: small matplotlib drawings as inline SVG that take their ink from the page, light or dark."""

import colorsys
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

INK = "#010203"
"""Stands for the page's text colour; replaced by ``currentColor`` in the SVG."""
PALETTE = ("#3b82c4", "#d9742b", "#2f9e6e", "#c0558f", "#8a6fd1", "#a98a24", "#2f9fb5", "#c94f4f")
"""Mid-tones, legible on white and on black."""
STYLE = {
    "svg.hashsalt": "egspo",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
WIDTH, HEIGHT = 4.3, 2.8
MAX_POINTS = 600
"""More points than a panel has pixels only make the page heavy."""


@dataclass(frozen=True)
class Panel:
    title: str
    caption: str
    svg: str


def panel(
    title: str, caption: str, labels: tuple[str, str], paint: Callable[[Axes], None], height: float = HEIGHT
) -> Panel | None:
    """A drawing with its x and y ``labels``, or None if ``paint`` found nothing to draw."""
    with rc_context():
        rcdefaults()  # whatever the user's matplotlibrc says
        rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=6, integer="step" in labels[0] or "samples" in labels[0])
        )
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        if "samples" in labels[0]:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        paint(axes)
        return Panel(title, caption, _svg(figure, title)) if axes.has_data() else None


def _svg(figure: Figure, title: str) -> str:
    """SVG to put inside a page: no prologue, no addresses, no dates, ids that are its own."""
    text = StringIO()
    with warnings.catch_warnings():
        # The browser's fonts draw the text, so glyphs that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{title}" \1>', svg)
    own = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'( id="|url\(#)', rf"\1{own}-", svg.replace("xlink:href", "href"))
    return svg.replace('href="#', f'href="#{own}-').replace(INK, "currentColor")


def colours(count: int) -> list[str]:
    """As many distinct colours as there are runs."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [to_hex(colorsys.hls_to_rgb(place / count, 0.52, 0.55)) for place in range(count)]


def tinted(runs: Sequence) -> Iterable[tuple]:
    """Each run with its colour."""
    return zip(runs, colours(len(runs)), strict=True)


def window_of(count: int) -> int:
    """Neighbouring points that a smoothed curve averages: a twentieth of the curve, odd."""
    return 2 * (count // 40) + 1


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean; at the ends over the neighbours that there are."""
    kernel = np.ones(window_of(len(values)))
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones(len(values)), kernel, mode="same")


def curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, spread: np.ndarray | None = None, **style
) -> None:
    """Faint raw values, a bold smoothed line, and a band of the smoothed ``spread`` around it.

    Of very many raw values the range is drawn, stretch by stretch, so that no spike is lost.
    """
    if not len(x):
        return
    middle, thin = smooth(y), slice(None, None, math.ceil(len(x) / MAX_POINTS))
    if len(x) > MAX_POINTS:
        starts = np.arange(0, len(x), math.ceil(len(x) / (MAX_POINTS / 4)))
        low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        axes.fill_between(x[starts], low, high, color=colour, alpha=0.2, linewidth=0)
    elif window_of(len(y)) > 1:
        axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.7)
    axes.plot(x[thin], middle[thin], color=colour, marker="o" if len(x) < 10 else "", markersize=3, **style)
    if spread is not None:
        wide = smooth(spread)
        axes.fill_between(
            x[thin], (middle - wide)[thin], (middle + wide)[thin], color=colour, alpha=0.12, linewidth=0
        )


def histogram(axes: Axes, values: Sequence[int | float], edges: np.ndarray, colour: str, phase: str) -> None:
    """Shares of values by bin: a dashed outline for the early ones, filled for the late ones."""
    if not len(values):
        return
    shares = np.histogram(values, edges)[0] / len(values)
    if phase != "early":
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
    axes.stairs(shares, edges, color=colour, linestyle="--" if phase == "early" else "-", linewidth=1.3)


def metric_panel(runs: Sequence, key: str, title: str, label: str, caption: str) -> Panel | None:
    """One metric over training, a curve a run."""

    def paint(axes):
        for run, colour in tinted(runs):
            curve(axes, *run.series(key), colour)
        from_zero(axes)

    return panel(title, caption, ("training step", label), paint)


def from_zero(axes: Axes) -> None:
    """Start the y axis at zero unless values are negative, so that noise looks no larger than it is."""
    if axes.has_data() and axes.dataLim.ymin >= 0:
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax or 1)


def line_legend(axes: Axes, styles: dict[str, str]) -> None:
    """A legend of line styles by name, in ink: colours mean runs."""
    if axes.has_data() and len(styles) > 1:
        handles = [Line2D([], [], color=INK, linestyle=style, label=name) for name, style in styles.items()]
        axes.legend(handles=handles, handlelength=2.6)


def bin_edges(low: float, high: float, most: int) -> np.ndarray:
    """Edges of equal bins whose first and last are centred on ``low`` and ``high``."""
    width = (high - low) / (most - 1) if high > low else 1.0
    return np.arange(most + 1 if high > low else 2) * width + low - width / 2


def step_edges(num_steps: int, most: int = 32) -> np.ndarray:
    """Edges of bins of whole denoising steps."""
    width = math.ceil(num_steps / most)
    return np.arange(0, num_steps + width, width) - 0.5
