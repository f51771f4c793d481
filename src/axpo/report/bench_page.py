"""What `axpo bench` writes: its figures, a row per sample, the table, and a page with the table and
the trees of some questions of each benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.build.bench import results
from axpo.build.cells import Cell
from axpo.evaluation.bench.answers import Answers, sample_rows
from axpo.folder import RunFolder, whole_file, write_whole
from axpo.models.paths import model_path
from axpo.report.bench import (
    PROTOCOL,
    averages_rows,
    counts,
    heading,
    heads,
    markdown,
    mean_lines,
    table_lines,
)
from axpo.report.command import reading
from axpo.report.html import MAX_BYTES, render, script_json
from axpo.report.names import capital
from axpo.report.trees import CATEGORIES, HELD_OUT, TreePayload, telling
from axpo.store import load_groups, load_pictures
from axpo.tree import Group

SCRIPTS = ("page.js", "trees.js", "picker.js")
RESERVED_BYTES = 150_000
TREES = 12
"""Questions of each benchmark whose trees are embedded, the same ones for every arm."""


def write_bench(folder: RunFolder, cells: Sequence[Cell]) -> dict[str, Any]:
    """Write `bench.json`, `bench.md`, `samples.jsonl` and the page of cells that were measured;
    returns the first."""
    picked: dict[str, list[str]] = {}
    with whole_file(folder.samples) as temporary, temporary.open("w", encoding="utf-8") as file:

        def hear(benchmark: str, arms: Mapping[str, Answers]) -> None:
            for arm, answers in arms.items():
                for row in sample_rows(benchmark, arm, answers):
                    file.write(json.dumps(row) + "\n")
            picked[benchmark] = telling([a.groups for a in arms.values()])[:TREES]

        found = results(cells, hear)
    write_whole(folder.bench, json.dumps(found, indent=1))
    write_whole(folder.bench_table, markdown(found))
    _write_page(folder.bench_page, found, cells, picked)
    return found


def _write_page(
    out: Path, found: Mapping[str, Any], cells: Sequence[Cell],
    picked: Mapping[str, Sequence[str]],
) -> None:  # fmt: skip
    """Write the page to `out`; `picked` has the ids of the groups of each benchmark
    whose trees are shown, for every arm."""
    payload = _trees(cells, picked)
    models = [f"{found['model']}", *([f"base {found['base']}"] if found["base"] else [])]
    names = found["benchmarks"]
    data: dict[str, Any] = {
        "runs": [{"name": cell.title} for cell in cells], "heldOut": HELD_OUT,
        "categories": CATEGORIES, "strings": payload.strings, "pictures": payload.pictures,
        "groups": payload.groups,
    }  # fmt: skip
    tables = [(heading(found, name), table_lines(found, name)) for name in names]
    if means := mean_lines(found):
        tables.append(("Mean of the nine benchmarks", means))
    notes = [f"{name}: {text}" for name in names for text in counts(found, name)]
    if any(one["paper"] for one in names.values()):
        notes.append(f"{PROTOCOL} Paper: {found['paper']['source']}.")
    page = render(
        "bench.html.jinja",
        SCRIPTS,
        title="Benchmarks",
        headline=f"{' and '.join(models)} on {', '.join(names)}",
        said=[f"{found['samples']} samples for each question."],
        heads=heads(found["k"]),
        tables=tables,
        notes=notes,
        averages=[
            (name, [capital(one["comparable"])], *averages_rows(one["arms"]))
            for name, one in names.items()
        ],
        trees=len(payload.groups),
        left_out=sum(cell.config.eval.questions for cell in cells) - len(payload.groups),
        data=script_json(data),
    )
    with whole_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _trees(cells: Sequence[Cell], picked: Mapping[str, Sequence[str]]) -> TreePayload:
    """The picked questions' trees, each cell's within its share of the page's bytes."""
    payload = TreePayload(lambda _: [])
    limit = MAX_BYTES - RESERVED_BYTES
    models = {cell.config.model.path for cell in cells}
    readings = {model: reading(model_path(model)) for model in models}
    for place, cell in enumerate(cells):
        payload.decode, payload.sides = readings[cell.config.model.path]
        groups = _groups(cell, picked[cell.benchmark.name])
        for group in groups:
            load_pictures(RunFolder(cell.folder).pictures, group)
            payload.add(place, HELD_OUT, group, limit * (place + 1) // len(cells))
    return payload


def _groups(cell: Cell, ids: Sequence[str]) -> list[Group]:
    """The groups of these ids, in this order, without pictures."""
    found: dict[str, Group] = {}
    for file in RunFolder(cell.folder).evaluated.files():
        found |= {group.id: group for group in load_groups(file) if group.id in ids}
    return [found[id] for id in ids]
