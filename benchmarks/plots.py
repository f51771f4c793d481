"""The performance page's figures, in the report's colours.

Each function takes a benchmark's rows and returns a matplotlib figure, or None where the rows
hold nothing to plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axpo.report.names import BASE_COLOURS, NEUTRAL, OTHER_COLOURS
from axpo.report.plots import INK, SOFT, new_figure, style_axis
from benchmarks.harness import Row
from benchmarks.targets import targets_of, value

OURS, THEIRS = BASE_COLOURS["AXPO"], BASE_COLOURS["GRPO"]
"""What axpo's own figures are drawn in everywhere, and what it is compared with first."""
BARS = (THEIRS, OTHER_COLOURS[1], OTHER_COLOURS[2])
AXES = {
    "image_tokens": "image tokens",
    "response": "response tokens",
    "rollouts": "rollouts per question",
    "turns": "tool turns",
}


def _short(case: dict[str, Any], keys: Sequence[str]) -> str:
    """`64 + 256` tokens of image and response, tool turns below."""
    label = " + ".join(str(case[key]) for key in ("image_tokens", "response") if key in keys)
    turns = next((case[key] for key in ("turns", "tool_turns") if key in keys), None)
    if turns is None or (turns == 0 and "turns" in keys):
        return label
    return f"{label}\n{turns} turn{'' if turns == 1 else 's'}"


def ratio_figure(rows: Sequence[Row], keys: Sequence[str]) -> Any:
    """Times faster than each baseline by case (`keys` of it), quartiles and targets; then memory
    where it was measured."""
    rows = [row for row in rows if "skipped" not in row]
    if not rows:
        return None
    cases = list(dict.fromkeys(_short(row["case"], keys) for row in rows))
    baselines = list(dict.fromkeys(row["against"] for row in rows))
    panels = [("ratio_cpu", "Times less CPU time than …")]
    if any("memory_ratio" in row for row in rows):
        panels.append(("memory_ratio", "Peak memory, share of …"))
    figure, grid = new_figure(len(panels), 1, 2.9 * len(panels))
    axes = grid[:, 0]
    width = 0.8 / len(baselines)
    for axis, (key, title) in zip(axes, panels, strict=True):
        for number, name in enumerate(baselines):
            mine = [row for row in rows if row["against"] == name and key in row]
            places = [
                cases.index(_short(row["case"], keys)) + (number + 0.5) * width - 0.4
                for row in mine
            ]
            _bars(axis, places, mine, key, BARS[number], width)
        axis.set_xticks(range(len(cases)), cases)
        axis.axhline(1, color=SOFT, lw=1)
        names = [AXES[key] for key in ("image_tokens", "response") if key in keys]
        style_axis(axis, title, " + ".join(names))
    handles = [
        axes[0].bar([0], [0], color=colour, label=name)
        for name, colour in zip(baselines, BARS, strict=False)
    ]
    if any(targets_of(row) for row in rows):
        handles.append(axes[0].plot([], [], color=INK, lw=1.6, label="target")[0])
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), frameon=False,
        fontsize=9.5, labelcolor=INK, handlelength=1.2,
    )  # fmt: skip
    return figure


def _bars(
    axis: Any, places: Sequence[float], rows: Sequence[Row], key: str, colour: str, width: float
) -> None:
    heights = [value(row[key]) for row in rows]
    axis.bar(places, heights, width * 0.92, color=colour)
    for place, row, height in zip(places, rows, heights, strict=True):
        top = height
        if isinstance(row[key], dict):
            axis.plot([place] * 2, [row[key]["low"], row[key]["high"]], color=INK, lw=1, alpha=0.7)
            top = row[key]["high"]
        axis.annotate(
            f"{height:.1f}" if key != "memory_ratio" else f"{height:.2f}", (place, top),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7.5, color=INK,
        )  # fmt: skip
        for target in targets_of(row):
            if target.figure == key:
                bound = target.least if target.least is not None else target.most
                axis.plot(
                    [place - width * 0.46, place + width * 0.46], [bound] * 2, color=INK, lw=1.6
                )


def growth_figure(rows: Sequence[Row]) -> Any:
    """Seconds against each axis, a row of panels a phase, with the time that the operations would
    take at a matrix product's speed."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    phases = list(dict.fromkeys(row["case"]["phase"] for row in rows))
    names = [name for name in AXES if any(row["case"]["axis"] == name for row in rows)]
    if not names:
        return None
    figure, grid = new_figure(len(phases), len(names), 2.6 * len(phases), sharey="row")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.975))  # the first row's legend
    for phase, axes in zip(phases, grid, strict=True):
        for name, axis in zip(names, axes, strict=True):
            mine = [r for r in rows if (r["case"]["phase"], r["case"]["axis"]) == (phase, name)]
            mine.sort(key=lambda row: row["case"][name])
            _growth_panel(axis, mine, name)
            style_axis(axis, phase.capitalize() if name == names[0] else "", AXES[name])
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            if name != "turns":
                axis.set_xscale("log", base=2)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks([row["case"][name] for row in mine])
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes[0].set_ylabel("CPU seconds", fontsize=9.5, color=SOFT)
        _growth_legend(axes, compared=any(row.get("theirs") for row in rows_of(rows, phase)))
    return figure


def rows_of(rows: Sequence[Row], phase: str) -> list[Row]:
    """Those of a phase."""
    return [row for row in rows if row["case"]["phase"] == phase]


def _growth_legend(axes: Any, compared: bool) -> None:
    """What is drawn in this row of panels, beside its title."""
    styles = [("axpo", OURS, "-"), ("operations at matmul speed", NEUTRAL, "--")]
    if compared:
        styles.insert(1, ("padded rows", THEIRS, "-"))
    handles = [axes[0].plot([], [], color=c, ls=s, lw=2, label=n)[0] for n, c, s in styles]
    axes[-1].legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.03, 1.0), ncols=3, frameon=False,
        fontsize=9, labelcolor=INK, handlelength=1.6,
    ).set_in_layout(False)  # fmt: skip


def _growth_panel(axis: Any, rows: Sequence[Row], name: str) -> None:
    places = [row["case"][name] for row in rows]
    ours = [row["ours"]["cpu_s"] for row in rows]
    ideal = [row["ours"]["cpu_s"] * row["ours"]["share"] for row in rows]
    axis.plot(places, ideal, color=NEUTRAL, lw=1.4, ls="--")
    if all(row.get("theirs") for row in rows):
        theirs = [row["theirs"]["cpu_s"] for row in rows]
        axis.plot(places, theirs, color=THEIRS, lw=2.2, marker="o", ms=4)
    axis.plot(places, ours, color=OURS, lw=2.2, marker="o", ms=4)
