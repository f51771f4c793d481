"""Figures as plain JSON values: a mean with its interval, and each seed's value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from axpo.evaluation.bootstrap import Estimate
from axpo.evaluation.seeds import student

Json = dict[str, Any]
ENTROPY = "entropy_correlation"
BOUNDS = {
    ENTROPY: (-1.0, 1.0),
    "confidence_correlation": (-1.0, 1.0),
    "recovery_gain": (-1.0, 1.0),
    "distinct_calls": (1.0, math.inf),
    "distinct_calls_merged": (1.0, math.inf),
    "tokens": (0.0, math.inf),
}
"""What a figure that is no share cannot leave, and so its interval, widened for few seeds."""


def bounded(metric: str, cell: Json, difference: bool = False) -> Json:
    """The interval cut off where the metric ends, a share at 0 and 1 (see `BOUNDS`)."""
    lowest, highest = BOUNDS.get(metric, (0.0, 1.0))
    if difference:
        lowest, highest = lowest - highest, highest - lowest
    return cut_off(cell, lowest, highest)


def cut_off(cell: Json, lowest: float, highest: float) -> Json:
    """The interval as far as it lies between `lowest` and `highest`.

    It is left out where it is unknown, where both ends are one (outcomes that are all the same do
    not tell how much others would differ), and where it leaves all that there can be.
    """
    low, high = cell.get("low", math.nan), cell.get("high", math.nan)
    kept = {key: value for key, value in cell.items() if key not in ("low", "high")}
    if not high - low > 1e-9 or (low <= lowest and highest <= high):
        return kept
    return kept | {"low": max(lowest, low), "high": min(highest, high)}


def over_seeds(values: Mapping[int, float]) -> Json:
    """Mean over the seeds that have a value, Student's t interval from two on, and the values,
    None for a seed without."""
    by_seed = sorted(values.items())
    known = [value for _, value in by_seed if math.isfinite(value)]
    if not known:
        return {}
    estimate = student(known) or Estimate(math.fsum(known) / len(known), math.nan, math.nan)
    cell: Json = {k: v for k, v in estimate.to_dict().items() if math.isfinite(v)}
    return cell | {"values": seed_values([s for s, _ in by_seed], [value for _, value in by_seed])}


def seed_values(seeds: Sequence[int], values: Iterable[float]) -> Json:
    """Seed -> value, None where it is not a number."""
    pairs = zip(seeds, map(float, values), strict=True)
    return {str(seed): value if math.isfinite(value) else None for seed, value in pairs}
