"""Static figures for a README or a paper: the gap's four curves, runs over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axpo.folder import whole_file
from axpo.report.names import MAIN_CHARTS, Chart, colours, smooth
from axpo.report.runs import RunView, distinct_names, main_kind

INK, SOFT, LINE = "#1b1f24", "#5b6470", "#dfe2e6"


def comparison_png(out: Path, runs: Sequence[RunView], title: str = "", dpi: int = 200) -> Path:
    """Write accuracy, tool rate, all-wrong tool subgroups and recovery of `runs` to `out`.

    A panel that no run has numbers for is left out; raises `ValueError` where none has any.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = main_kind(runs)
    charts = [c for c in MAIN_CHARTS if any(run.series(c.key, kind) for run in runs)]
    if not charts:
        raise ValueError(f"no metrics to plot in {', '.join(str(r.folder) for r in runs)}")
    names = distinct_names(runs)
    palette = colours(names)
    figure = Figure(figsize=(2.75 * len(charts) + 0.4, 2.95), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr]
    axes = figure.subplots(1, len(charts), squeeze=False)[0]
    for axis, chart in zip(axes, charts, strict=True):
        series = [(palette[n], r.series(chart.key, kind)) for n, r in zip(names, runs, strict=True)]
        _panel(axis, chart, [(colour, points) for colour, points in series if points])
    handles = [axes[0].plot([], [], color=palette[n], lw=2.4, label=n)[0] for n in names]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(names), frameon=False,
        fontsize=10, labelcolor=INK, handlelength=1.4,
    )  # fmt: skip
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        figure.savefig(
            temporary, format="png", dpi=dpi, facecolor="white", metadata={"Software": None}
        )
    return out


def _panel(axis: Any, chart: Chart, series: list[tuple[str, list[tuple[int, float]]]]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for colour, points in series:
        steps, values = zip(*points, strict=True)
        level = smooth(values)
        axis.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
        axis.plot(steps, level, color=colour, lw=2.2, solid_capstyle="round")
        axis.annotate(
            f"{100 * level[-1]:.0f}", (steps[-1], level[-1]), xytext=(4, 0),
            textcoords="offset points", va="center", color=colour, fontsize=9, fontweight="bold",
        )  # fmt: skip
    highest = max(v for _, points in series for _, v in points)
    axis.set_ylim(0, 1.02 * min(1.0, max(0.1, math.ceil(highest * 10 + 0.2) / 10)))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    style_axis(axis, chart.title, "step")


def style_axis(axis: Any, title: str, below: str) -> None:
    """The look that all static figures share."""
    axis.set_title(title, fontsize=10.5, color=INK, loc="left", pad=7)
    axis.set_xlabel(below, fontsize=9, color=SOFT)
    axis.tick_params(labelsize=8.5, colors=SOFT, length=0)
    axis.grid(axis="y", color=LINE, lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(LINE)
