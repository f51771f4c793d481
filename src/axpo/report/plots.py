"""Static figures for a README or a paper: how often each tool is tried while runs train, and the
look that all figures of the project share.

A figure is `WIDTH` inches wide, the full width of a README, so that a point of text has the same
size in all figures. It is written twice, for a light page and (`-dark` in its name) for a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from axpo.folder import whole_file
from axpo.report.names import MAIN_CHARTS, Chart, colours, family_charts, smooth
from axpo.report.runs import RunView, distinct_names, main_kind

INK, SOFT, LINE = "#1b1f24", "#5b6470", "#dfe2e6"
WIDTH = 8.3
DPI = 200
COLOURS = 255
"""The colours of a file; a figure has flat colours and their edges."""
NIGHT = np.array([0x0D, 0x11, 0x17], np.float64) / 255
"""The ground of a dark page."""
GAP = 0.05
"""A curve is broken where a larger share of all steps has no value."""
APART = 0.075
"""The least distance of two labels at the ends of curves, as a share of the panel's height."""


def comparison_png(
    out: Path, runs: Sequence[RunView], tools: Mapping[str, str] | None = None
) -> Path:
    """Write to `out` how often a tool is tried on each family's questions, run over run.

    If the questions have no families, the figure has the main curves. `tools` maps a family to its
    tool's name. A panel that no run has numbers for is left out; raises `ValueError` if none is
    left.
    """
    kind = main_kind(runs)
    metrics = {name for run in runs for name in run.names(kind)}
    charts = family_charts(metrics, tools or {}) or [
        chart for chart in MAIN_CHARTS if any(run.series(chart.key, kind) for run in runs)
    ]
    if not charts:
        raise ValueError(f"no metrics to plot in {', '.join(str(r.folder) for r in runs)}")
    names = distinct_names(runs)
    palette = colours(names)
    shared = all(chart.whole for chart in charts)
    figure, axes = new_figure(1, len(charts), 2.7, sharey=shared)
    for axis, chart in zip(axes[0], charts, strict=True):
        series = [(palette[n], r.series(chart.key, kind)) for n, r in zip(names, runs, strict=True)]
        _panel(axis, chart, [(colour, points) for colour, points in series if points])
    legend_above(figure, axes[0][0], palette)
    return save(figure, out)


def new_figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns], `WIDTH` wide and `height` inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_above(
    figure: Any, axis: Any, palette: Mapping[str, str], dashes: Mapping[str, str] | None = None
) -> None:
    """One line per name above all panels; it is solid unless `dashes` has a style for the name."""
    known = dashes or {}
    handles = [
        axis.plot([], [], known.get(name, "-"), color=colour, lw=2.4, label=name)[0]
        for name, colour in palette.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(handles), 4), frameon=False,
        fontsize=9.5, labelcolor=INK, handlelength=2.2,
    )  # fmt: skip


def picture(path: str, description: str) -> str:
    """The Markdown of a figure that `save` wrote; a dark page shows the dark one."""
    dark = str(Path(path).with_stem(f"{Path(path).stem}-dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{description}" src="{path}"></picture>'
    )


def style_axis(axis: Any, title: str, below: str, grid: str = "y", note: str = "") -> None:
    """Give the axis the look of all static figures; `note` is a smaller line below the title."""
    axis.set_title(title, fontsize=10.5, color=INK, loc="left", pad=20 if note else 7)
    if note:
        axis.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
            fontsize=8, color=SOFT,
        )  # fmt: skip
    axis.set_xlabel(below, fontsize=9.5, color=SOFT)
    axis.tick_params(labelsize=9.5, colors=SOFT, length=0, which="both")
    axis.grid(axis=grid, color=LINE, lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(LINE)


def percent_axis(axis: Any, locator: Any) -> None:
    """Show the values of an x or y axis in per cent, with ticks by `locator`."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_locator(locator)
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def label_ends(axis: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write each curve's last value in per cent at its end (step, value, colour)."""
    low, high = axis.get_ylim()
    least, lowest = APART * (high - low), -math.inf
    heights: list[float] = []
    for _, value, _ in sorted(ends, key=lambda end: end[1]):
        lowest = max(value, lowest + least)
        heights.append(lowest)
    over = max(0.0, max(heights, default=0.0) - high)
    for height, (step, value, colour) in zip(
        heights, sorted(ends, key=lambda e: e[1]), strict=True
    ):
        axis.annotate(
            f"{100 * value:.0f} %", (step, max(low, height - over)), xytext=(4, 0),
            textcoords="offset points", va="center", color=colour, fontsize=9.5,
            fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG for a light page and for a dark one (`-dark`).

    The same figure gives the same bytes.
    """
    figure.set_dpi(DPI)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba(), np.float64)[:, :, :3] / 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(drawn, path)
    write_png(at_night(drawn), path.with_stem(f"{path.stem}-dark"))
    return path


def at_night(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The picture [height, width, 3], drawn on white, for a dark ground: dark becomes light, and
    each hue stays."""
    ends = drawn.max(axis=2, keepdims=True) + drawn.min(axis=2, keepdims=True)
    return NIGHT + (drawn + 1.0 - ends) * (1.0 - NIGHT) * 0.92


def write_png(drawn: NDArray[np.float64], path: Path) -> None:
    """Write a picture [height, width, 3] of values from 0 to 1 with few colours."""
    picture = Image.fromarray((255 * drawn.clip(0, 1)).round().astype(np.uint8))
    few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with whole_file(path) as temporary:
        few.save(temporary, format="PNG", optimize=True)


def _panel(axis: Any, chart: Chart, series: list[tuple[str, list[tuple[int, float]]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    first = min(points[0][0] for _, points in series)
    last = max(points[-1][0] for _, points in series)
    ends: list[tuple[float, float, str]] = []
    for colour, points in series:
        steps, values = zip(*points, strict=True)
        level = smooth(steps, values)
        broken = max(2.0, GAP * (last - first))
        axis.plot(*_with_gaps(steps, values, broken), color=colour, lw=0.8, alpha=0.35)
        axis.plot(*_with_gaps(steps, level, broken), color=colour, lw=2.4, solid_capstyle="round")
        ends.append((steps[-1], level[-1], colour))
    highest = max(v for _, points in series for _, v in points)
    top = 1.0 if chart.whole else min(1.0, max(0.1, math.ceil(highest * 10 + 0.2) / 10))
    axis.set_ylim(0, 1.02 * top)
    axis.set_xlim(first, last + 0.2 * max(1, last - first))
    percent_axis(axis.yaxis, MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ticks = MaxNLocator(4, integer=True).tick_values(first, last + 1)
    axis.set_xticks([tick for tick in ticks if first <= tick <= last + 1])
    style_axis(axis, chart.title, "step", note=chart.note)
    label_ends(axis, ends)


def _with_gaps(
    steps: Sequence[int], values: Sequence[float], broken: float
) -> tuple[list[float], list[float]]:
    """The curve with a NaN wherever more than `broken` steps have no value."""
    found: tuple[list[float], list[float]] = ([], [])
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if i and step - steps[i - 1] > broken:
            found[0].append(math.nan)
            found[1].append(math.nan)
        found[0].append(step)
        found[1].append(value)
    return found
