"""A study's figures: learning curves with a band over seeds, and held-out results.

A curve is the mean over seeds of each seed's mean over the last 10 steps; the band reaches from
the lowest seed to the highest. Over sampled tokens every seed is interpolated on one grid, as far
as all seeds of the variant reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axpo.evaluation.bootstrap import Floats
from axpo.folder import whole_file
from axpo.report.names import MAIN_CHARTS, Chart, colours
from axpo.report.plots import INK, LINE, SOFT, style_axis
from axpo.study.markup import Json
from axpo.study.read import Model, Training
from axpo.study.settings import START, group_slug

Curve = tuple[Floats, Floats, Floats, Floats]
"""Where, mean, lowest and highest seed."""
POINTS = 100
MAIN = "pass@1"
FAMILY_ROWS = ((MAIN, "Pass@1"), ("tool_rate", "Tool rate"))


def step_curve(runs: Sequence[Training], metric: str) -> Curve:
    """The metric over steps; NaN where no seed has a value yet."""
    values = np.array([run.recent(metric) for run in runs])
    return (np.arange(1.0, values.shape[1] + 1), *_band(values))


def token_curve(runs: Sequence[Training], metric: str) -> Curve:
    """The metric over sampled tokens, from where all seeds have spent some to where all did.

    NaN between two steps of which one has no value; empty where no amount is common to all.
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


def write_curves(models: Mapping[str, Model], baseline: str, out: Path) -> list[tuple[str, str]]:
    """Write the learning curves that there are numbers for; returns (title, file name)."""
    written: list[tuple[str, str]] = []
    trained = [m for m in models.values() if m.training]
    for group in dict.fromkeys(m.group for m in trained):
        members = [m for m in trained if m.group in (group, models[baseline].group)]
        name = f"curves-{group_slug(group)}.png"
        _curves(members, out / name)
        written.append((f"Learning curves: {group}", name))
    return written


def write_held_out_figures(found: Json, out: Path) -> list[tuple[str, str]]:
    """Write those of `study.json`'s held-out results; returns (title, file name)."""
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


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns], width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _curves(models: Sequence[Model], path: Path) -> None:
    """Two rows, over steps and over sampled tokens; a column a chart."""
    palette = colours([model.label for model in models])
    charts = [
        chart
        for chart in MAIN_CHARTS
        if any(np.isfinite(r.series(chart.key)).any() for m in models for r in m.training.values())
    ]
    figure, axes = new_figure(2, len(charts), 2.75 * len(charts) + 0.4, 5.4)
    for row, (curve, below) in enumerate(
        ((step_curve, "step"), (token_curve, "sampled tokens (millions)"))
    ):
        for axis, chart in zip(axes[row], charts, strict=True):
            for model in models:
                points = curve(list(model.training.values()), chart.key)
                draw_curve(axis, points, palette[model.label], 1.0 if row == 0 else 1e6)
            _finish(axis, chart, below)
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def legend_above(figure: Any, axis: Any, palette: Mapping[str, str]) -> None:
    """A line a name above all panels."""
    handles = [axis.plot([], [], color=c, lw=2.4, label=n)[0] for n, c in palette.items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(handles), 4), frameon=False,
        fontsize=9, labelcolor=INK, handlelength=1.4,
    )  # fmt: skip


def save(figure: Any, path: Path) -> None:
    """Write the PNG, the same bytes for the same figure."""
    with whole_file(path) as temporary:
        figure.savefig(
            temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None}
        )


def draw_curve(axis: Any, curve: Curve, colour: str, unit: float) -> None:
    """The mean as a line on its band, places divided by `unit`."""
    where, mean, low, high = curve
    if np.isfinite(mean).any():
        axis.fill_between(where / unit, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(where / unit, mean, color=colour, lw=2.0, solid_capstyle="round")


def _finish(axis: Any, chart: Chart, below: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style_axis(axis, chart.title, below)


def _families(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for all questions and for each family; a model's mean, interval and seeds."""
    from matplotlib.ticker import PercentFormatter

    palette = colours([cell["label"] for cell in cells])
    parts = parts_of(cells, "evaluation")
    figure, axes = new_figure(len(FAMILY_ROWS), len(parts), 2.2 * len(parts) + 0.6, 4.6)
    for row, (metric, name) in zip(axes, FAMILY_ROWS, strict=True):
        for axis, part in zip(row, parts, strict=True):
            for place, cell in enumerate(cells):
                if shown := cell["evaluation"].get(part, {}).get(metric):
                    _with_seeds(axis, place, shown, palette[cell["label"]])
            axis.set_xlim(-0.6, len(cells) - 0.4)
            axis.set_ylim(-0.05, 1.05)
            axis.set_xticks([])
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            style_axis(axis, f"{name}, {part_name(part)}", "")
    legend_above(figure, axes[0][0], palette)
    save(figure, path)


def _with_seeds(axis: Any, place: float, cell: Mapping[str, Any], colour: str) -> None:
    """An estimate at `place`: interval, seeds as small dots beside it, and the mean."""
    if "low" in cell:
        axis.plot([place, place], [cell["low"], cell["high"]], color=colour, lw=1.8)
    values = [v for v in cell["values"].values() if v is not None]
    axis.plot([place + 0.22] * len(values), values, "o", color=colour, ms=3, alpha=0.5, mew=0)
    axis.plot(place, cell["value"], "o", color=colour, ms=7, mec="white")


def _differences(cells: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """A row a variant, a column for all questions and for each family.

    Each has the difference with its interval, and each seed's as a dot.
    """
    parts = parts_of(cells, "difference")
    figure, axes = new_figure(1, len(parts), 2.6 * len(parts) + 1.6, 1.1 + 0.34 * len(cells))
    for axis, part in zip(axes[0], parts, strict=True):
        axis.sharex(axes[0][0])
        for place, cell in enumerate(cells):
            if shown := cell["difference"].get(part, {}).get(MAIN):
                if "low" in shown:
                    axis.plot([shown["low"], shown["high"]], [place, place], color=INK, lw=1.6)
                values = [v for v in shown["values"].values() if v is not None]
                below = [place + 0.25] * len(values)
                axis.plot(values, below, "o", color=SOFT, ms=3, alpha=0.6, mew=0)
                axis.plot(shown["value"], place, "o", color=INK, ms=6)
        axis.axvline(0.0, color=LINE, lw=1.2, zorder=0)
        axis.set_yticks(range(len(cells)), [])
        axis.set_ylim(len(cells) - 0.5, -0.5)
        style_axis(axis, f"{title}, {part_name(part)}" if part == "all" else part_name(part), "")
    axes[0][0].set_yticks(range(len(cells)), [cell["label"] for cell in cells])
    figure.supxlabel("difference; line: 95 % interval, small dots: seeds", fontsize=9, color=SOFT)
    save(figure, path)


def parts_of(cells: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """All questions, then each family."""
    return ["all", *sorted({p for c in cells for p in c[kind] if p.startswith("family ")})]


def part_name(part: str) -> str:
    """As a panel's title has it."""
    return part.removeprefix("family ").replace("_", " ")
