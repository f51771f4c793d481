"""The anatomy of the runs' steps as the report page shows it: bars, bands over steps, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from axpo.report.anatomy import (
    COUNTS,
    REST,
    WARM_UP,
    Anatomy,
    Phase,
    aligned,
    bands,
    dissect,
    phase_seconds,
    sentence,
)
from axpo.report.runs import RunView
from axpo.wording import count_text, percent, seconds_text

MIN_STEPS = 3
"""With fewer steps a run has no bands over steps."""
LABELLED = 0.07
"""A piece of a bar that is shorter than this share of the longest bar has no room for its name."""


def timing_view(
    runs: Mapping[str, RunView], kind: str
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What the page's section is rendered from, and what its charts draw, for the `runs` by name.

    Every list of cells has one per run. There is no section if no run was timed.
    """
    found = {name: dissect(_warm(run.lines(kind))) for name, run in runs.items()}
    timed = {name: anatomy for name, anatomy in found.items() if anatomy is not None}
    if not timed:
        return None, {"bands": [], "runs": []}
    shown, tables = bands(list(timed.values())), list(timed.values())
    longest = max(anatomy.seconds for anatomy in tables)
    view = {
        "steps": " or ".join(map(str, sorted({anatomy.steps for anatomy in tables}))),
        "bars": [_bar(name, anatomy, shown, longest) for name, anatomy in timed.items()],
        "legend": shown,
        "phases": aligned([anatomy.phases for anatomy in tables]),
        "inside": aligned([anatomy.inside for anatomy in tables]),
        "busy": [f"{n} {percent(a.busy)}" for n, a in timed.items() if a.busy is not None],
        "counts": _counts(tables),
    }
    curves = [_curve(name, runs[name].lines(kind), shown) for name in timed]
    return view, {
        "bands": [{"label": phase.label, "colour": phase.colour} for phase in shown],
        "runs": [curve for curve in curves if len(curve["steps"]) >= MIN_STEPS],
    }


def _warm(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The steps that count; a run that is all warm-up counts whole."""
    return lines[WARM_UP:] or lines


def _bar(name: str, anatomy: Anatomy, shown: Sequence[Phase], longest: float) -> dict[str, Any]:
    """A run's mean step as a bar; its `length` is a share of the longest bar's."""
    shares = dict.fromkeys(shown, 0.0)
    for row in anatomy.phases:
        shares[row.part if row.part in shares else REST] += row.share
    length = anatomy.seconds / longest
    pieces = [
        {
            "part": phase,
            "share": share,
            "text": f"{phase.label} {percent(share)}" if share * length >= LABELLED else "",
            "title": f"{phase.label}: {seconds_text(share * anatomy.seconds)}, {percent(share)}",
        }
        for phase, share in shares.items()
        if share > 0
    ]
    seconds, said = seconds_text(anatomy.seconds), sentence(anatomy)
    return {"name": name, "length": length, "seconds": seconds, "said": said, "pieces": pieces}


def _counts(tables: Sequence[Anatomy]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(label, what its share is of, and a (number, share) for each run)."""
    found = [{count: (value, share) for count, value, share in a.counts} for a in tables]
    rows: list[tuple[str, str, list[tuple[str, str]]]] = []
    for count in COUNTS:
        cells = [run.get(count, (None, None)) for run in found]
        if any(value for value, _ in cells):
            texts = [(count_text(v), "" if s is None else percent(s)) for v, s in cells]
            rows.append((count.label, count.whole, texts))
    return rows


def _curve(name: str, lines: Sequence[Mapping[str, Any]], shown: Sequence[Phase]) -> dict[str, Any]:
    """A run's steps with the seconds of every band; the rest holds the small phases."""
    values: list[list[float]] = []
    for line in lines:
        seconds = dict.fromkeys((phase.key for phase in shown), 0.0)
        for key, value in phase_seconds(line).items():
            seconds[key if key in seconds else REST.key] += value
        values.append([float(f"{value:.4g}") for value in seconds.values()])
    return {"name": name, "steps": [int(line["step"]) for line in lines], "values": values}
