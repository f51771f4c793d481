"""Reads what `axpo eval` left in run folders, and compares runs. Needs no model and no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from axpo.errors import UserError
from axpo.evaluation.summary import compare
from axpo.folder import RunFolder, read_json
from axpo.store import load_groups
from axpo.tree import Group

SEED = 0
"""Of the resamples; one seed, so that a comparison gives the same figures each time."""


def evaluated_groups(out: Path) -> list[Group]:
    """The groups that `evaluate` left in a run's folder, without pictures; by id (2 before 10), for
    on disk they are in the order in which they were finished, and resamples draw by place."""
    _evaluated(out)
    groups = [group for file in RunFolder(out).evaluated.files() for group in load_groups(file)]
    return sorted(groups, key=lambda g: [part.zfill(20) for part in re.split(r"(\d+)", g.id)])


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """`summary.compare` of two evaluated run folders, baseline first, at the evaluations' k."""
    k = {_evaluated(out)["k"] for out in (first, second)}
    if len(k) != 1:
        raise UserError(f"{first} and {second} were evaluated with k = {sorted(k)}; expected one")
    return compare(evaluated_groups(first), evaluated_groups(second), k.pop(), SEED)


def _evaluated(out: Path) -> dict[str, Any]:
    folder = RunFolder(out)
    if not out.is_dir():
        raise UserError(f"no run at {out}: expected a folder that `axpo eval` wrote to")
    if not folder.evaluation.is_file():
        raise UserError(f"no evaluation in {out}; run `axpo eval` with --out {out} first")
    folder.check()
    return read_json(folder.evaluation)
