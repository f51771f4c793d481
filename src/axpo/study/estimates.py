"""Figures as plain JSON values: a mean with its interval, and the value of each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from axpo.evaluation.bootstrap import Estimate
from axpo.evaluation.seeds import student
from axpo.study.markup import Json

ENTROPY = "entropy_correlation"
BOUNDS = {
    ENTROPY: (-1.0, 1.0),
    "confidence_correlation": (-1.0, 1.0),
    "recovery_gain": (-1.0, 1.0),
    "distinct_calls": (1.0, math.inf),
    "distinct_calls_merged": (1.0, math.inf),
    "tokens": (0.0, math.inf),
}
"""The least and largest value of each figure that is no share; its interval cannot leave them."""


def bounded(metric: str, cell: Json, difference: bool = False) -> Json:
    """The cell with its interval cut off at the metric's `BOUNDS`, or at 0 and 1 for a share."""
    lowest, highest = BOUNDS.get(metric, (0.0, 1.0))
    if difference:
        lowest, highest = lowest - highest, highest - lowest
    return cut_off(cell, lowest, highest)


def cut_off(cell: Json, lowest: float, highest: float) -> Json:
    """The cell with its interval cut off at `lowest` and `highest`.

    The interval is left out if it is unknown, if both ends are equal (outcomes that are all the
    same do not tell how much others would differ), and if it allows every possible value.
    """
    low, high = cell.get("low", math.nan), cell.get("high", math.nan)
    kept = {key: value for key, value in cell.items() if key not in ("low", "high")}
    if not high - low > 1e-9 or (low <= lowest and highest <= high):
        return kept
    return kept | {"low": max(lowest, low), "high": min(highest, high)}


def over_seeds(values: Mapping[int, float]) -> Json:
    """The mean over the seeds that have a value, with Student's t interval if there are two or
    more, and the values (None for a seed without one)."""
    by_seed = sorted(values.items())
    known = [value for _, value in by_seed if math.isfinite(value)]
    if not known:
        return {}
    estimate = student(known) or Estimate(math.fsum(known) / len(known), math.nan, math.nan)
    cell: Json = {k: v for k, v in asdict(estimate).items() if math.isfinite(v)}
    return cell | {"values": seed_values([s for s, _ in by_seed], [value for _, value in by_seed])}


def seed_values(seeds: Sequence[int], values: Iterable[float]) -> Json:
    """The value of each seed; None if it is not a number."""
    pairs = zip(seeds, map(float, values), strict=True)
    return {str(seed): value if math.isfinite(value) else None for seed, value in pairs}
