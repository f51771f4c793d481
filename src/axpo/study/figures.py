"""A study's figures: learning curves with a band over seeds, and held-out results.

A curve is the mean over seeds of each seed's mean over the last 10 steps; the band goes from the
lowest seed to the highest. Over sampled tokens every seed is interpolated on one grid, which ends
where the first seed of the variant ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axpo.evaluation.bootstrap import Floats
from axpo.report.names import BASE_COLOURS, MAIN_CHARTS, Chart, colours
from axpo.report.plots import INK, SOFT, legend_above, new_figure, percent_axis, save, style_axis
from axpo.study.markup import Json
from axpo.study.read import StudyModel, Training
from axpo.study.settings import START, group_slug

Curve = tuple[Floats, Floats, Floats, Floats]
"""The places, and at each the mean, the lowest seed and the highest seed."""
POINTS = 100
MAIN = "pass@1"
FAMILY_ROWS = ((MAIN, "Pass@1"), ("tool_rate", "Tool rate"))
DASHES = ("-", "--", ":", "-.")
"""The line styles of the models without a colour of their own, which take turns."""


def step_curve(runs: Sequence[Training], metric: str) -> Curve:
    """The metric over steps; NaN as long as no seed has a value."""
    values = np.array([run.recent(metric) for run in runs])
    return (np.arange(1.0, values.shape[1] + 1), *_band(values))


def token_curve(runs: Sequence[Training], metric: str) -> Curve:
    """The metric over the amounts of sampled tokens that all seeds have reached.

    NaN between two steps of which one has no value; empty if no amount is common to all seeds.
    """
    spent = [run.tokens() for run in runs]
    first, last = max(s[0] for s in spent), min(s[-1] for s in spent)
    grid = np.linspace(first, last, POINTS) if first < last else np.empty(0)
    values = [np.interp(grid, s, run.recent(metric)) for s, run in zip(spent, runs, strict=True)]
    return (grid, *_band(np.array(values)))


def _band(values_SX: Floats) -> tuple[Floats, Floats, Floats]:
    known = np.isfinite(values_SX)
    count = known.sum(axis=0)
    total = np.where(known, values_SX, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    low = np.where(known, values_SX, np.inf).min(axis=0)
    high = np.where(known, values_SX, -np.inf).max(axis=0)
    none = count == 0
    low[none] = high[none] = np.nan
    return mean, low, high


def write_curves(
    models: Mapping[str, StudyModel], references: Sequence[str], out: Path
) -> list[tuple[str, str]]:
    """Write the learning curves of each group; return (title, file name) of each figure.

    Groups other than the main one are drawn beside the models with which they are compared
    (`references`, the baseline first). Models and panels without numbers are left out.
    """
    written: list[tuple[str, str]] = []
    trained = [m for m in models.values() if m.training]
    for group in dict.fromkeys(m.group for m in trained):
        members = [m for m in trained if m.group == group or m.name in references]
        name = f"curves-{group_slug(group)}.png"
        _curves(members, out / name)
        written.append((f"Learning curves: {group}", name))
    return written


def write_held_out_figures(found: Json, out: Path) -> list[tuple[str, str]]:
    """Write the figures of the held-out results in `study.json`; return (title, file name) of
    each."""
    written: list[tuple[str, str]] = []
    baseline = found["models"][found["baseline"]]
    main = [m for m in found["models"].values() if m["group"] in (START, baseline["group"])]
    main = [m for m in main if m["evaluation"]]
    if main:
        _families(main, out / "families.png")
        written.append(("Held out, by family", "families.png"))
    compared = [m for name, m in found["models"].items() if name != START and m["difference"]]
    if compared:
        _differences(compared, f"Pass@1 minus {baseline['label']}", out / "differences.png")
        written.append((f"Pass@1 beside {baseline['label']}, held out", "differences.png"))
    return written


def _curves(models: Sequence[StudyModel], path: Path) -> None:
    """The main metrics over steps, then accuracy over sampled tokens; a panel without numbers is
    left out."""
    palette = colours([model.label for model in models])
    dashes = _dashes(models)
    charts = [
        chart
        for chart in MAIN_CHARTS
        if any(np.isfinite(r.series(chart.key)).any() for m in models for r in m.training.values())
    ]
    drawn = [(chart, step_curve, "step", 1.0) for chart in charts]
    drawn.append((MAIN_CHARTS[0], token_curve, "sampled tokens (millions)", 1e6))
    columns = 2 if len(drawn) < 5 else 3
    rows = -(-len(drawn) // columns)
    figure, axes = new_figure(rows, columns, 2.4 * rows + 0.5)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (chart, curve, below, unit) in zip(axes.flat, drawn, strict=False):
        for model in models:
            points = curve(list(model.training.values()), chart.key)
            draw_curve(axis, points, palette[model.label], unit, dashes[model.label])
        _finish(axis, chart, below)
    legend_above(figure, axes[0][0], palette, dashes)
    save(figure, path)


def _dashes(models: Sequence[StudyModel]) -> dict[str, str]:
    """Solid lines for GRPO and AXPO; the others take turns, as eight hues are hard to tell
    apart."""
    found = {m.label: "-" for m in models if m.label in BASE_COLOURS}
    others = [m.label for m in models if m.label not in found]
    return found | {name: DASHES[i % len(DASHES)] for i, name in enumerate(others)}


def draw_curve(axis: Any, curve: Curve, colour: str, unit: float, dash: str = "-") -> None:
    """Draw the mean as a line on its band; the places are divided by `unit`."""
    where, mean, low, high = curve
    if np.isfinite(mean).any():
        axis.fill_between(where / unit, low, high, color=colour, alpha=0.12, lw=0)
        axis.plot(where / unit, mean, dash, color=colour, lw=2.0)


def _finish(axis: Any, chart: Chart, below: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    style_axis(axis, chart.title, below)


def _families(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One column for all questions and for each family, with each model's mean, interval and
    seeds."""
    from matplotlib.ticker import MultipleLocator

    palette = colours([cell["label"] for cell in cells])
    parts = parts_of(cells, "evaluation")
    figure, axes = new_figure(len(FAMILY_ROWS), len(parts), 4.4, sharey="row")
    for row, (metric, name) in zip(axes, FAMILY_ROWS, strict=True):
        found = [[cell["evaluation"].get(part, {}).get(metric) for cell in cells] for part in parts]
        low, high = _reach([shown for column in found for shown in column if shown])
        for axis, part, column in zip(row, parts, found, strict=True):
            for place, (cell, shown) in enumerate(zip(cells, column, strict=True)):
                if shown:
                    _with_seeds(axis, place, shown, palette[cell["label"]])
            axis.set_xlim(-0.6, len(cells) - 0.3)
            axis.set_ylim(low - 0.03, high + 0.12)
            axis.set_xticks([])
            percent_axis(axis.yaxis, MultipleLocator(0.2))
            style_axis(axis, f"{name}, {part_name(part)}", "")
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def _reach(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range from the next multiple of 0.2 below the lowest end to the highest end."""
    low = min(cell.get("low", cell["value"]) for cell in cells)
    return np.floor(5 * low) / 5, max(cell.get("high", cell["value"]) for cell in cells)


def _with_seeds(axis: Any, place: float, cell: Mapping[str, Any], colour: str) -> None:
    """Draw an estimate at `place`: its interval, the mean with its number, and the seeds as
    dots."""
    top = cell.get("high", cell["value"])
    if "low" in cell:
        axis.plot([place, place], [cell["low"], top], color=colour, lw=2.2)
    values = [v for v in cell["values"].values() if v is not None]
    axis.plot([place + 0.27] * len(values), values, "o", color=colour, ms=4.5, alpha=0.5, mew=0)
    axis.plot(place, cell["value"], "o", color=colour, ms=7.5, mec="white")
    axis.annotate(
        f"{100 * cell['value']:.0f}", (place, max(top, *values, cell["value"])), xytext=(0, 4),
        textcoords="offset points", ha="center", color=colour, fontsize=9, fontweight="bold",
    )  # fmt: skip


def _differences(cells: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """One row per variant, and one column with its own axis for all questions and for each family.

    A difference has its interval, a mark that is filled if the interval excludes 0, and one dot
    per seed.
    """
    from matplotlib.ticker import MaxNLocator

    parts = parts_of(cells, "difference")
    ratios = [1.5, *[1.0] * (len(parts) - 1)]
    height = 1.0 + 0.34 * len(cells)
    figure, axes = new_figure(1, len(parts), height, width_ratios=ratios)
    palette = {c["label"]: BASE_COLOURS.get(c["label"], SOFT) for c in cells}
    for axis, part in zip(axes[0], parts, strict=True):
        for place, cell in enumerate(cells):
            if shown := cell["difference"].get(part, {}).get(MAIN):
                _difference(axis, place, shown, palette[cell["label"]])
        axis.axvline(0.0, color=INK, lw=1.0, zorder=0)
        axis.set_yticks(range(len(cells)), [])
        axis.set_ylim(len(cells) - 0.4, -0.6)
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        style_axis(axis, f"{title}, all" if part == "all" else part_name(part), "", grid="x")
    axes[0][0].set_yticks(range(len(cells)), [cell["label"] for cell in cells])
    axes[0][0].tick_params(axis="y", labelsize=9, labelcolor=INK)
    said = "line: 95 % interval, filled where it excludes 0; small dots: seeds"
    figure.supxlabel(said, fontsize=9, color=SOFT)
    save(figure, path)


def _difference(axis: Any, place: float, cell: Mapping[str, Any], colour: str) -> None:
    low, high = cell.get("low"), cell.get("high")
    if low is not None:
        axis.plot([low, high], [place, place], color=colour, lw=1.8)
    values = [v for v in cell["values"].values() if v is not None]
    axis.plot(values, [place + 0.28] * len(values), "o", color=colour, ms=3, alpha=0.6, mew=0)
    apart = low is not None and high is not None and (low > 0 or high < 0)
    face = colour if apart else "white"
    axis.plot(cell["value"], place, "o", color=colour, ms=6.5, mfc=face, mew=1.5)


def parts_of(cells: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """The part of all questions, then the families."""
    return ["all", *sorted({p for c in cells for p in c[kind] if p.startswith("family ")})]


def part_name(part: str) -> str:
    """The part's name in the title of a panel."""
    return part.removeprefix("family ").replace("_", " ")
