"""The anatomy of the runs' steps as the report page shows it: bars, bands over steps, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.report.anatomy import (
    COUNTS,
    REST,
    WARM_UP,
    Anatomy,
    Part,
    Row,
    aligned,
    bands,
    dissect,
    phase_seconds,
    sentence,
)
from axpo.report.runs import RunView
from axpo.wording import count_text, percent, seconds_text

MIN_STEPS = 3
LABELLED = 0.07


@dataclass(frozen=True, slots=True)
class Piece:
    """A phase's piece of a bar; `text` is empty where it would not fit."""

    part: Part
    share: float
    text: str
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A run's mean step; `length` is its share of the longest one."""

    name: str
    length: float
    seconds: str
    said: str
    pieces: list[Piece]


TableRow = tuple[Part, list[Row | None]]


@dataclass(frozen=True, slots=True)
class View:
    """What the page's section is rendered from; every list of cells has one a run of `bars`."""

    steps: str
    bars: list[Bar]
    legend: list[Part]
    phases: list[TableRow]
    inside: list[TableRow]
    busy: list[str]
    counts: list[tuple[str, str, list[tuple[str, str]]]]


def timing_view(runs: Mapping[str, RunView], kind: str) -> tuple[View | None, dict[str, Any]]:
    """The section of the `runs` by name, and what its charts draw; None where none was timed."""
    found = {name: dissect(_warm(run.lines(kind))) for name, run in runs.items()}
    timed = {name: anatomy for name, anatomy in found.items() if anatomy is not None}
    if not timed:
        return None, {"bands": [], "runs": []}
    shown, tables = bands(list(timed.values())), list(timed.values())
    longest = max(anatomy.seconds for anatomy in tables)
    steps = sorted({anatomy.steps for anatomy in tables})
    view = View(
        steps=" or ".join(map(str, steps)),
        bars=[_bar(name, anatomy, shown, longest) for name, anatomy in timed.items()],
        legend=shown,
        phases=aligned([anatomy.phases for anatomy in tables]),
        inside=aligned([anatomy.inside for anatomy in tables]),
        busy=[f"{n} {percent(a.busy)}" for n, a in timed.items() if a.busy is not None],
        counts=_counts(tables),
    )
    curves = [_curve(name, runs[name].lines(kind), shown) for name in timed]
    return view, {
        "bands": [{"label": part.label, "colour": part.colour} for part in shown],
        "runs": [curve for curve in curves if len(curve["steps"]) >= MIN_STEPS],
    }


def _warm(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The steps that count; a run that is all warm-up counts whole."""
    return lines[WARM_UP:] or lines


def _bar(name: str, anatomy: Anatomy, shown: Sequence[Part], longest: float) -> Bar:
    shares = dict.fromkeys(shown, 0.0)
    for row in anatomy.phases:
        shares[row.part if row.part in shares else REST] += row.share
    pieces = [
        Piece(
            part,
            share,
            f"{part.label} {percent(share)}"
            if share * anatomy.seconds >= LABELLED * longest
            else "",
            f"{part.label}: {seconds_text(share * anatomy.seconds)}, {percent(share)}",
        )
        for part, share in shares.items()
        if share > 0
    ]
    return Bar(
        name, anatomy.seconds / longest, seconds_text(anatomy.seconds), sentence(anatomy), pieces
    )


def _counts(tables: Sequence[Anatomy]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(label, what its share is of, a (number, share) for each run)."""
    found = [{count: (value, share) for count, value, share in a.counts} for a in tables]
    rows: list[tuple[str, str, list[tuple[str, str]]]] = []
    for count in COUNTS:
        cells = [run.get(count, (None, None)) for run in found]
        if any(value for value, _ in cells):
            texts = [(count_text(v), "" if s is None else percent(s)) for v, s in cells]
            rows.append((count.label, count.whole, texts))
    return rows


def _curve(name: str, lines: Sequence[Mapping[str, Any]], shown: Sequence[Part]) -> dict[str, Any]:
    """A run's steps with the seconds of every band; small phases are in the rest."""
    values: list[list[float]] = []
    for line in lines:
        seconds = dict.fromkeys((part.key for part in shown), 0.0)
        for key, value in phase_seconds(line).items():
            seconds[key if key in seconds else REST.key] += value
        values.append([float(f"{value:.4g}") for value in seconds.values()])
    return {"name": name, "steps": [int(line["step"]) for line in lines], "values": values}
