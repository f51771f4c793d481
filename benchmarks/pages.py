"""The performance page: docs/performance.md and its figures, from the results file alone.

Every benchmark has a section: its text (`texts`), a table of its rows, a figure. Columns are the
parts of the case that differ between rows; what all rows share stands above the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.report.plots import picture, save
from benchmarks.cells import COLUMNS, case_text, number, spread, table, verdicts
from benchmarks.harness import Row
from benchmarks.plots import AXES, growth_figure, ratio_figure
from benchmarks.targets import targets_of
from benchmarks.texts import INTRO, TEXTS, TITLES
from benchmarks.update_tables import long_trees_table, peers_table, update_profile_table


def render(results: Mapping[str, Any], page: Path) -> Path:
    """Write `page` and its figures (in a folder of the page's name); returns the page."""
    folder = page.with_suffix("")
    parts = [INTRO.format(file=page.with_suffix(".json").name)]
    for name, title in TITLES.items():
        if name in results:
            parts.append(_section(name, title, results[name], folder))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts))
    return page


def _section(name: str, title: str, result: Mapping[str, Any], folder: Path) -> str:
    rows: list[Row] = result["rows"]
    measured = [row for row in rows if "skipped" not in row]
    lines = [f"## {title}", "", TEXTS[name], ""]
    lines += [f"Left out: {row['skipped']}.\n" for row in rows if "skipped" in row]
    if measured:
        figure = _figure(name, measured)
        if figure is not None:
            path = save(figure, folder / f"{name}.png")
            lines += [picture(f"{folder.name}/{path.name}", title), ""]
        lines += TABLES.get(name, _table)(measured)
    return "\n".join([*lines, "", _provenance(result), ""])


def _figure(name: str, rows: Sequence[Row]) -> Any:
    if name == "growth":
        return growth_figure(rows)
    if name in TABLES:
        return None
    keys = [
        key for key in ("image_tokens", "response", "tool_turns", "turns") if key in _vary(rows)
    ]
    return ratio_figure(rows, keys) if keys else None


def _provenance(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = f", load {machine['load']:.1f}" if "load" in machine else ""
    gpu = "" if machine.get("gpu", "none") == "none" else f", {machine['gpu']}"
    return (
        f"<sub>{result['date']}, `{result['command']}` ({result['seconds']} s), "
        f"{machine['processor']}, {machine['cores']} cores{gpu}{load}, "
        f"{machine['threads']} thread(s), {versions}</sub>"
    )


def _vary(rows: Sequence[Row]) -> list[str]:
    """Keys of the case that differ between rows."""
    keys = dict.fromkeys(key for row in rows for key in row["case"])
    return [key for key in keys if len({str(row["case"].get(key)) for row in rows}) > 1]


def _table(rows: Sequence[Row]) -> list[str]:
    """Ratios, absolute seconds and targets, one line per row."""
    keys = _vary(rows)
    shared = {key: value for key, value in rows[0]["case"].items() if key not in keys}
    figures = {
        "ratio_step_cpu": "CPU a step", "memory_ratio": "memory", "ratio_flops": "operations",
        "ratio_all_wall": "wall, all steps together", "ratio_tokens": "tokens trained on",
        "ratio_over_tokens": "time / tokens",
        "ratio_flops_8b": "operations, 8B",
    }  # fmt: skip
    figures = {key: text for key, text in figures.items() if any(key in row for row in rows)}
    if any("extra_samples" in row["ours"] for row in rows):
        figures["extra_samples"] = "extra samples"
    head = [COLUMNS.get(key, key) for key in keys]
    head += ["against", "CPU ratio", "wall ratio", *figures.values()]
    head += ["ours, CPU s", "theirs, CPU s", "ours, wall s", "theirs, wall s", "rounds"]
    with_targets = any(targets_of(row) for row in rows)
    body: list[list[str]] = []
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        cells = [str(row["case"].get(key, "")) for key in keys]
        cells += [row["against"], spread(row["ratio_cpu"]), spread(row["ratio_wall"])]
        cells += [number(row.get(key, ours.get(key))) for key in figures]
        cells += [number(s[clock]) for clock in ("cpu_s", "wall_s") for s in (ours, theirs)]
        cells.append(str(row["rounds"]))
        if with_targets:
            cells.append(verdicts(row))
        body.append(cells)
    text = f"All rows: {case_text(shared)}.\n" if shared else ""
    return [text, *table([*head, *(["target"] if with_targets else [])], body)]


def _growth_tables(rows: Sequence[Row]) -> list[str]:
    """A table a phase: seconds, operations and their share at every point."""
    lines: list[str] = []
    for phase in dict.fromkeys(row["case"]["phase"] for row in rows):
        mine = [row for row in rows if row["case"]["phase"] == phase]
        padded = all(row.get("theirs") for row in mine)
        head = ["axis", "value", "CPU s", "wall s", "Gflop", "share of matmul"]
        head += ["padded, CPU s", "padded, Gflop"] if padded else ["tokens sampled"]
        body: list[list[str]] = []
        for row in mine:
            axis, ours = row["case"]["axis"], row["ours"]
            cells = [AXES[axis], str(row["case"][axis]), number(ours["cpu_s"])]
            cells += [number(ours["wall_s"]), f"{ours['flops'] / 1e9:.0f}", f"{ours['share']:.0%}"]
            if padded:
                cells += [number(row["theirs"]["cpu_s"]), f"{row['theirs']['flops'] / 1e9:.0f}"]
            else:
                cells.append(f"{ours['tokens']:.0f}")
            body.append(cells)
        lines += [f"**{phase.capitalize()}**", "", *table(head, body), ""]
    return lines


def _tools_tables(rows: Sequence[Row]) -> list[str]:
    """Waiting by case, then the overhead of each tool."""
    head = ["trajectories", "thinking tokens", "CPU ratio", "alone", "wall ratio", "tokens/s"]
    head += ["idle, s", "per call, s", "rows per step", "target"]
    waiting: list[list[str]] = []
    overhead: list[list[str]] = []
    for row in rows:
        case, ours, theirs = row["case"], row["ours"], row["theirs"]
        kinds = ("ratio_cpu", "ratio_alone", "ratio_wall")
        ratios = [spread(row[kind]) for kind in kinds if kind in row]
        if "tool" in case:
            call = f"{1e3 * ours['wall_s'] / ours['calls']:.2f}"
            overhead.append([case["tool"], str(case["calls_at_once"]), *ratios, call])
            continue
        cells = [str(case["trajectories"]), case["thinking"], *ratios]
        for key in ("decoded_per_s", "idle_s", "seconds_a_call", "rows_per_step"):
            cells.append(f"{number(ours[key])} / {number(theirs[key])}")
        waiting.append([*cells, verdicts(row)])
    lines = ["Slow tools / instant ones:", "", *table(head, waiting)]
    if overhead:
        head = ["tool", "calls at once", "CPU ratio", "wall ratio", "ms per call"]
        lines += ["", "Against an empty call:", "", *table(head, overhead)]
    return lines


def _gradings_table(rows: Sequence[Row]) -> list[str]:
    """Seconds, blocks of the loop and memory by the graders that took part."""
    head = ["graders", "gradings", "wall, s", "CPU, s", "slowest, s", "block, ms", "of it CPU, ms"]
    head += ["grown by, MiB", "workers, MiB", "target"]
    body: list[list[str]] = []
    for row in rows:
        case, ours = row["case"], row["ours"]
        cells = [case["graders"], str(case["gradings"])]
        cells += [number(ours[key]) for key in ("wall_s", "cpu_s", "slowest_s")]
        cells += [number(row[key]) for key in ("block_ms", "block_cpu_ms")]
        cells += [f"{ours[key]:.0f}" for key in ("own_mib", "workers_mib")]
        cells.append(verdicts(row))
        body.append(cells)
    return table(head, body)


def _cluster_table(rows: Sequence[Row]) -> list[str]:
    """Processor seconds, passes, balance and bytes by ranks, the one process first."""
    head = ["ranks", "layers", "busiest rank, CPU ratio", "all ranks, CPU ratio"]
    head += [
        "busiest, CPU s",
        "all, CPU s",
        "passes",
        "idle",
        "fullest rank",
        "gathered, KB a token",
    ]
    head += ["reduced, KB a token", "loss", "rounds"]

    def cells(figures: Mapping[str, float], rounds: int) -> list[str]:
        seconds = [number(figures[key]) for key in ("busiest_s", "all_s")]
        passes = [f"{figures[key]:.0f}" for key in ("passes", "idle")]
        moved = [f"{figures[key] / 1e3:.1f}" for key in ("gathered", "reduced")]
        loss = f"{figures['loss']:.5f}"
        return [*seconds, *passes, f"{figures['imbalance']:.2f}", *moved, loss, str(rounds)]

    body = [["one process", "", "1", "1", *cells(rows[0]["theirs"], rows[0]["rounds"])]]
    for row in rows:
        case, ratios = row["case"], (spread(row["ratio_cpu"]), spread(row["ratio_all"]))
        body.append(
            [str(case["ranks"]), case["layers"], *ratios, *cells(row["ours"], row["rounds"])]
        )
    return table(head, body)


def _simulator_table(rows: Sequence[Row]) -> list[str]:
    """One line per distribution and number of ranks, gathered layers beside held ones."""
    head = ["trees", "ranks", "passes", "idle", "trunk", "filled", "filled, held"]
    head += ["received / sent, GB", "held, GB"]
    both: dict[tuple[str, int], dict[str, Mapping[str, float]]] = {}
    for row in rows:
        case = row["case"]
        both.setdefault((case["trees"], case["ranks"]), {})[case["layers"]] = row["ours"]
    body: list[list[str]] = []
    for (trees, ranks), found in both.items():
        some, held = found["gathered"], found["held"]
        idle = some["idle"] / (some["passes"] + some["idle"])
        cells = [trees, str(ranks), f"{some['passes']:.0f}", f"{idle:.0%}", f"{some['trunk']:.0%}"]
        cells += [f"{figures['filled']:.2f}" for figures in (some, held)]
        cells += [f"{f['gathered'] / 1e9:.0f} / {f['reduced'] / 1e9:.0f}" for f in (some, held)]
        body.append(cells)
    return table(head, body)


TABLES: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "peers": peers_table,
    "update_profile": update_profile_table,
    "long_trees": long_trees_table,
    "growth": _growth_tables,
    "tools": _tools_tables,
    "gradings": _gradings_table,
    "cluster": _cluster_table,
    "cluster_simulator": _simulator_table,
}
"""The benchmarks whose tables have columns of their own."""
