"""The performance page's tables of updates: beside peers, by kind of operation, in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cells import number, spread, table, verdicts
from benchmarks.harness import Row
from benchmarks.peers.tree_bench import EACH, ONE
from benchmarks.update_profile import KINDS

HEAD = (
    "group", "prompt", "response", "shared", "against", "CPU ratio", "wall ratio", "memory",
    "operations / floor", "8B", "share of floor, ours", "theirs", "ours, CPU s", "theirs, CPU s",
    "rounds", "target",
)  # fmt: skip
WAYS = (ONE, EACH)
"""PrefixGrouper's slower way has its own name, and no column of the summary."""


def peers_table(rows: Sequence[Row]) -> list[str]:
    """One line per tree, with each peer's ratio and memory, then one per tree and peer."""
    trees: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        trees.setdefault(_tree(row), {})[row["against"]] = row
    peers = [name for name in dict.fromkeys(row["against"] for row in rows) if name not in WAYS]
    summary: list[list[str]] = []
    for tree, against in trees.items():
        cells = [
            f"{spread(row['ratio_cpu'])}; {number(row['memory_ratio'])}" if row else ""
            for row in map(against.get, peers)
        ]
        summary.append([*tree, *cells])
    lines = ["CPU ratio; axpo's memory as a share of the peer's:", ""]
    lines += [*table([*HEAD[:4], *peers], summary), "", "All figures:", ""]
    return lines + table(HEAD, [_figures(row) for row in rows])


def _tree(row: Row) -> tuple[str, str, str, str]:
    """Kind, prompt, response and shared part of a row's tree."""
    case = row["case"]
    picture = f" ({case['image_tokens']} of a picture)" if case["image_tokens"] else ""
    crops = {0: "", 1: ", 1 crop"}.get(case["turns"], f", {case['turns']} crops")
    return (
        case["group"] + crops,
        f"{case['words'] + case['image_tokens']}{picture}",
        str(case["response"]),
        f"{1 - case['tokens'] / case['path_tokens']:.2f}",
    )


def _figures(row: Row) -> list[str]:
    ours, theirs = row["ours"], row["theirs"]
    return [
        *_tree(row),
        f"{row['against']} ({row['way']})" if row["way"] != row["against"] else row["way"],
        spread(row["ratio_cpu"]),
        spread(row["ratio_wall"]),
        number(row["memory_ratio"]),
        number(row["ratio_flops"]),
        number(row["ratio_flops_8b"]),
        f"{ours['share']:.0%}",
        f"{theirs['share']:.0%}",
        number(ours["cpu_s"]),
        number(theirs["cpu_s"]),
        str(row["rounds"]),
        verdicts(row),
    ]


def update_profile_table(rows: Sequence[Row]) -> list[str]:
    """One line per tree and way: each kind's share of the seconds, and its speed where the floor
    has operations of the kind."""
    head = ["group", "prompt", "response", "tokens", "way", "CPU s", *KINDS, "share of floor"]
    body: list[list[str]] = []
    for row in rows:
        case, ours, floor = row["case"], row["ours"], row["floor"]
        cells = [case["group"], str(case["words"] + case["image_tokens"])]
        cells += [str(case["response"]), str(case["tokens"]), case["way"], number(ours["cpu_s"])]
        for kind in KINDS:
            speed = f" ({floor[kind] / ours[kind]:.0%} of matmul)" if kind in floor else ""
            cells.append(f"{ours[kind] / ours['cpu_s']:.0%}{speed}")
        body.append([*cells, f"{sum(floor.values()) / ours['cpu_s']:.0%}" if floor else ""])
    return table(head, body)


def long_trees_table(rows: Sequence[Row]) -> list[str]:
    """One line per tree, model and room of a piece."""
    head = ["tree", "model", "tokens", "longest path", "tokens of a piece", "pieces"]
    head += ["computed twice", "operations / floor", "peak, GiB", "of the path's", "CPU s"]
    head += ["share of floor", "target"]
    body: list[list[str]] = []
    for row in rows:
        case, ours = row["case"], row["ours"]
        cells = [case["tree"], case["model"], str(case["tokens"]), str(case["path"]), case["room"]]
        cells += [f"{ours[key]:.0f}" for key in ("pieces", "trunk")]
        cells += [number(row["ratio_flops"]), number(ours["peak_gib"]), number(row["of_path"])]
        cells.append(number(ours.get("seconds")))
        cells.append(f"{ours['share']:.0%}" if "share" in ours else "")
        body.append([*cells, verdicts(row)])
    return table(head, body)
