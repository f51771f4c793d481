"""Figures of a study's diagnostics: the gap through training, the two axes, and failed prefixes.

The gap's curves are the paper's Figure 3 (arXiv 2605.28774): tool attempts, all-wrong subgroups
with and without a tool, and recovery of the resampled prefixes, over steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axpo.report.names import NEUTRAL, Chart, colours
from axpo.report.plots import (
    LINE,
    SOFT,
    label_ends,
    legend_above,
    new_figure,
    percent_axis,
    save,
    style_axis,
)
from axpo.study.figures import Curve, draw_curve, part_name, parts_of, step_curve
from axpo.study.markup import Json
from axpo.study.read import StudyModel
from axpo.study.settings import START
from studies.axpo_paper import paper

GAP_CHARTS = (
    Chart("tool_rate", "Tool attempts"),
    Chart("all_wrong_tool", "All wrong, with tool"),
    Chart("all_wrong_no_tool", "All wrong, no tool"),
    Chart("recovery_rate", "Recovered prefixes"),
)
QUARTERS = ("least\nconfident", "2nd\nquarter", "3rd\nquarter", "most\nconfident")


def write_gap_curves(
    models: Mapping[str, StudyModel], baseline: str, out: Path
) -> list[tuple[str, str]]:
    """Write the gap through training if there are numbers for it; returns (title, file name)."""
    main = [m for m in models.values() if m.training and m.group == models[baseline].group]
    series = [r.series(c.key) for m in main for r in m.training.values() for c in GAP_CHARTS]
    if not any(np.isfinite(values).any() for values in series):
        return []
    gap_curves(main, out / "gap.png")
    return [("The Thinking-Acting Gap through training", "gap.png")]


def write_diagnostic_figures(found: Json, out: Path) -> list[tuple[str, str]]:
    """Write the figures that `study.json` has values for; returns (title, file name)."""
    written: list[tuple[str, str]] = []
    groups = (START, found["models"][found["baseline"]]["group"])
    cells = {name: c for name, c in found["models"].items() if c["group"] in groups}
    if any(_axes(cell) for name, cell in cells.items() if name != START):
        two_axes(cells, out / "axes.png")
        written.append(("How often a tool is used, and how well", "axes.png"))
    diagnosed = [cell for cell in found["models"].values() if "recovery_rate" in cell["diagnosis"]]
    if diagnosed:
        prefix_figure(diagnosed, out / "prefixes.png")
        written.append(("What failed prefixes could still have led to", "prefixes.png"))
    return written


def gap_curves(models: Sequence[StudyModel], path: Path) -> None:
    """One panel per chart, with the mean over seeds and a band from the lowest seed to the
    highest."""
    palette = colours([model.label for model in models])
    curves = {
        chart: {m.label: step_curve(list(m.training.values()), chart.key) for m in models}
        for chart in GAP_CHARTS
    }
    charts = [c for c in GAP_CHARTS if any(np.isfinite(x[1]).any() for x in curves[c].values())]
    figure, axes = new_figure(1, len(charts), 2.7)
    for axis, chart in zip(axes[0], charts, strict=True):
        for name, curve in curves[chart].items():
            draw_curve(axis, curve, palette[name], 1.0)
        highest = max(np.nanmax(c[3]) for c in curves[chart].values() if np.isfinite(c[3]).any())
        _share_axis(axis, chart.title, "step", highest)
        axis.set_xlim(0, 1.22 * axis.get_xlim()[1])  # room for the ends' values
        ends = [(_end(curve), palette[name]) for name, curve in curves[chart].items()]
        label_ends(axis, [(*end, colour) for end, colour in ends if end is not None])
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def two_axes(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Tool rate (x) against accuracy of tool-using rollouts (y), both with their intervals.

    A panel for all questions and for each family; lines lead from the start to each variant.
    """
    palette = colours([cell["label"] for cell in cells.values()])
    parts = parts_of(list(cells.values()), "evaluation")
    figure, axes = new_figure(1, len(parts), 2.9, sharey="row")
    for axis, part in zip(axes[0], parts, strict=True):
        points = {name: both for name, cell in cells.items() if (both := _axes(cell, part))}
        for name, (x, y) in points.items():
            colour, at = palette[cells[name]["label"]], (x["value"], y["value"])
            if START in points and name != START:
                tail = [cell["value"] for cell in points[START]]
                axis.plot(*zip(tail, at, strict=True), color=colour, lw=1.2, ls=":", zorder=1)
            axis.plot(_ends(x), [at[1]] * 2, color=colour, lw=1.3, alpha=0.7)
            axis.plot([at[0]] * 2, _ends(y), color=colour, lw=1.3, alpha=0.7)
            axis.plot(*at, "o", color=colour, ms=8, mec="white", zorder=4)
        axis.set_xlim(-0.06, 1.06)
        axis.set_ylim(-0.05, 1.05)
        style_axis(axis, part_name(part), "tool rate, %")
        axis.set_xticks([0.0, 0.5, 1.0], ["0", "50", "100"])
        _percent(axis.yaxis)
        axis.grid(axis="x", color=LINE, lw=0.8)
    axes[0][0].set_ylabel("right where a tool is used", fontsize=9.5, color=SOFT)
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def prefix_figure(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Recovery by confidence, Proposition 1's two sides, and different calls of one prefix.

    A panel without numbers is left out.
    """
    palette = colours([cell["label"] for cell in cells])
    found = [cell["diagnosis"] for cell in cells]
    drawn = [_distinct_calls]
    if any("fresh_recovery_rate" in own for own in found):
        drawn.insert(0, _proposition)
    if any("recovery_quartile_1" in own for own in found):
        drawn.insert(0, _by_confidence)
    figure, axes = new_figure(1, len(drawn), 3.0)
    for axis, draw in zip(axes[0], drawn, strict=True):
        draw(axis, {cell["label"]: cell["diagnosis"] for cell in cells}, palette)
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def _by_confidence(axis: Any, found: Mapping[str, Any], palette: Mapping[str, str]) -> None:
    keys = [f"recovery_quartile_{i + 1}" for i in range(len(QUARTERS))]
    highest = _side_by_side(axis, found, palette, keys)
    _share_axis(axis, "Recovery at K by confidence", "", highest)
    axis.set_xticks(range(len(QUARTERS)), QUARTERS)


def _proposition(axis: Any, found: Mapping[str, Any], palette: Mapping[str, str]) -> None:
    compared = {name: own for name, own in found.items() if "fresh_recovery_rate" in own}
    highest = _side_by_side(axis, compared, palette, ["fresh_recovery_rate", "recovery_rate"])
    _share_axis(axis, "Any of K tool uses right", "", highest)
    axis.set_xlim(-0.5, 1.5)
    axis.set_xticks(range(2), ["fresh\nrollouts", "from the\nprefix"])


def _distinct_calls(axis: Any, found: Mapping[str, Any], palette: Mapping[str, str]) -> None:
    low, high = paper.DISTINCT_CALLS
    axis.axhspan(low, high, color=NEUTRAL, alpha=0.25, lw=0)
    axis.annotate(
        "paper", (-0.5, high), xytext=(3, 2), textcoords="offset points", fontsize=8, color=SOFT
    )  # fmt: skip
    for place, (name, own) in enumerate(found.items()):
        _estimates(axis, [None] * place + [own["distinct_calls"]], palette[name], 0.0)
    axis.set_ylim(bottom=0)
    style_axis(axis, "Different calls of one prefix", "")
    axis.set_xlim(-0.5, len(found) - 0.5)
    axis.set_xticks(range(len(found)), list(found))


def _side_by_side(
    axis: Any, found: Mapping[str, Any], palette: Mapping[str, str], keys: Sequence[str]
) -> float:
    """Draw one line per model through its figures, a little aside; return the highest end."""
    shift = np.linspace(-0.16, 0.16, len(found)) if len(found) > 1 else [0.0]
    ends = [
        _estimates(axis, [own.get(key) for key in keys], palette[name], float(aside), line=True)
        for (name, own), aside in zip(found.items(), shift, strict=True)
    ]
    return max(0.1, *ends)


def _axes(
    cell: Mapping[str, Any], part: str = "all"
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    own = cell["evaluation"].get(part, {})
    x, y = own.get("tool_rate"), own.get("accuracy_tool")
    return (x, y) if x and y else None


def _estimates(
    axis: Any, found: Sequence[Any], colour: str, aside: float, line: bool = False
) -> float:
    """Values with intervals at 0, 1, ... (moved `aside`); returns the highest end."""
    points = [(i + aside, cell) for i, cell in enumerate(found) if cell]
    for x, cell in points:
        axis.plot([x, x], _ends(cell), color=colour, lw=1.6, alpha=0.6)
    places, values = [x for x, _ in points], [cell["value"] for _, cell in points]
    axis.plot(places, values, "-o" if line else "o", color=colour, ms=6, lw=1.2, mec="white")
    return max((cell.get("high", cell["value"]) for _, cell in points), default=0.0)


def _ends(cell: Mapping[str, Any]) -> list[float]:
    """The interval's; the value twice where there is none."""
    return [cell.get("low", cell["value"]), cell.get("high", cell["value"])]


def _end(curve: Curve) -> tuple[float, float] | None:
    """The last step that has a value, and it."""
    where, mean, _, _ = curve
    known = np.isfinite(mean)
    return (float(where[known][-1]), float(mean[known][-1])) if known.any() else None


def _share_axis(axis: Any, title: str, below: str, highest: float) -> None:
    """A share from 0 to the next tenth above `highest`."""
    axis.set_ylim(0, 1.02 * min(1.0, max(0.2, math.ceil(highest * 10 + 0.2) / 10)))
    _percent(axis.yaxis)
    style_axis(axis, title, below)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    percent_axis(axis, MaxNLocator(5, steps=[1, 2, 5, 10]))
