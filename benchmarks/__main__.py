"""`python -m benchmarks`: run benchmarks, keep their rows as JSON, render the performance page.

Owns the command and the results file. A benchmark is a module with `run(quick, ...)`, which
gives rows (`harness.Row`); those that can use a GPU take `device`, those that train from an SFT
start take `start`, those that start a vLLM server `vllm`, those that look at a run's trees `trees`.
Results of benchmarks that are not run stay in the file.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from benchmarks.cells import case_text, spread
from benchmarks.harness import Row, machine
from benchmarks.pages import render
from benchmarks.targets import targets_of

BENCHMARKS = (
    "rollouts",
    "vllm_rollouts",
    "training_step",
    "peers",
    "update_profile",
    "long_trees",
    "whole_step",
    "extra_samples",
    "growth",
    "tools",
    "gradings",
    "cluster",
    "cluster_simulator",
)
OUT, PAGE = Path("docs/performance.json"), Path("docs/performance.md")
QUICK = Path("runs/benchmarks/quick")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _options(arguments)
    out, page = options.out, options.page
    results = json.loads(out.read_text()) if out.is_file() else {}
    console = Console(highlight=False)
    if options.page_only:
        if not results:
            sys.exit(f"benchmarks: no results in {out}; run `python -m benchmarks` first")
    else:
        if options.threads:
            torch.set_num_threads(options.threads)
        command = " ".join(["python -m benchmarks", *(arguments or sys.argv[1:])])
        for name in options.names or BENCHMARKS:
            rows, seconds = _run(name, options, console)
            if all("skipped" in row for row in rows):
                continue
            results[name] = {
                "command": command,
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(seconds),
                "machine": machine(),
                "rows": rows,
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Page: {render(results, page)}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="tiny cases: does it run at all?")
    parser.add_argument("--out", type=Path, help=f"results file ({OUT})")
    parser.add_argument("--page", type=Path, help=f"page to write, plots beside it ({PAGE})")
    parser.add_argument("--page-only", action="store_true", help="render the page from the file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0: torch's default")
    parser.add_argument("--start", type=Path, help="checkpoint of the lab that AXPO starts from")
    parser.add_argument("--trees", type=Path, help="run whose trees the simulator deals out too")
    vllm = os.environ.get("AXPO_VLLM_PYTHON") or None
    text = "python of vLLM's environment (AXPO_VLLM_PYTHON)"
    parser.add_argument("--vllm", metavar="PYTHON", default=vllm, help=text)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    # A quick run is no result: it must not take the place of one.
    options.out = options.out or (QUICK / OUT.name if options.quick else OUT)
    options.page = options.page or (QUICK / PAGE.name if options.quick else PAGE)
    return options


def _run(name: str, options: argparse.Namespace, console: Console) -> tuple[list[Row], float]:
    """All rows of a benchmark, printed as they come, and its seconds; none where it cannot run."""
    console.rule(name)
    module = importlib.import_module(f"benchmarks.{name}")
    given = _arguments(module, options)
    if options.device != "cpu" and "device" not in given:
        console.print(f"runs on a CPU only: left out with --device {options.device}")
        return [], 0.0
    began = time.perf_counter()
    rows: list[Row] = []
    found: Iterable[Row] = module.run(options.quick, **given)
    for row in found:
        rows.append(row)
        console.print(_line(row), markup=False, soft_wrap=True)
    return rows, time.perf_counter() - began


def _arguments(module: ModuleType, options: argparse.Namespace) -> dict[str, Any]:
    """Those of device, start, trees and vllm that `module.run` takes."""
    names = "device", "start", "trees", "vllm"
    offered = {name: getattr(options, name) for name in names}
    taken = inspect.signature(module.run).parameters
    return {key: value for key, value in offered.items() if key in taken}


def _line(row: Row) -> str:
    """A row for the terminal, with what it should reach."""
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    parts = [case_text(row["case"])]
    if row.get("against"):
        parts.append(f"against {row['against']}:")
        clocks = [clock for clock in ("CPU", "wall") if f"ratio_{clock.lower()}" in row]
        parts.append(
            ", ".join(f"{clock} {spread(row[f'ratio_{clock.lower()}'])}" for clock in clocks)
        )
    elif "cpu_s" in row["ours"]:
        parts.append(f"CPU {row['ours']['cpu_s']:.2f} s, wall {row['ours']['wall_s']:.2f} s")
    else:
        parts.append(", ".join(f"{key} {value:.3g}" for key, value in row["ours"].items()))
    if "memory_ratio" in row:
        parts.append(f"memory {row['memory_ratio']:.2f}")
    verdicts = [f"[{t}: {'pass' if t.met(row) else 'MISS'}]" for t in targets_of(row)]
    return "  ".join([*parts, *verdicts])


if __name__ == "__main__":
    main()
