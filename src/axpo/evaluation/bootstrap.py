"""Percentile bootstrap over questions, for means, ratios and paired differences of two models.

Every figure here is a ratio of sums over questions: a mean has denominators of 1, and an accuracy
with tool has the number of tool-using rollouts as its denominator. A resample draws as many
questions as there are, with replacement, each with all of its samples, so the samples of one
question stay together. Questions that are not independent (several on one picture) form a cluster:
their rows are added up first (`by_unit`), so a resample draws as many clusters as there are, each
as a whole.

An interval covers another draw of questions (and of the samples on them) for this one trained
model. It does not cover another training: seeds of SFT and RL move results by more than this, and
only runs with several seeds can show by how much. With few questions (below `FEWEST`) percentile
intervals are too narrow.

Shapes: Q questions, C columns, M metrics, R resamples. Columns that are drawn together stay paired.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 30
"""With fewer questions than this a percentile interval is too narrow to claim anything by."""
_DRAWS_AT_ONCE = 1_000_000
"""How many drawn questions are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first, and the share of resamples in which it is above 0 (a tie counts half)."""

    estimate: Estimate
    share_above: float


def resampled_sums(columns_QC: Floats, seed: int) -> Floats:
    """[R, C] sums of the columns over questions that are drawn with replacement.

    The same seed and Q draw the same questions.
    """
    if columns_QC.ndim != 2 or not len(columns_QC):
        raise ValueError(f"columns of shape {columns_QC.shape}: expected [questions, columns]")
    counts = _counts(len(columns_QC), seed)
    return np.concatenate([part @ columns_QC for part in counts])


def ratios(numerators_QM: Floats, denominators_QM: Floats, seed: int) -> list[Estimate | None]:
    """sum(numerator) / sum(denominator) of each metric; None if no question has a share in it.

    A resample whose denominator is 0 says nothing about the ratio and is left out.
    """
    metrics = _columns(numerators_QM, denominators_QM)
    sums_RC = resampled_sums(np.hstack([numerators_QM, denominators_QM]), seed)
    drawn_RM = divide(sums_RC[:, :metrics], sums_RC[:, metrics:])
    values_M = divide(numerators_QM.sum(axis=0), denominators_QM.sum(axis=0))
    return [interval(values_M[m], drawn_RM[:, m]) for m in range(metrics)]


def paired_differences(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], seed: int, level: float = LEVEL
) -> list[Difference | None]:
    """Second minus first of each ratio (numerators [Q, M], denominators [Q, M]), with intervals.

    Row q of both is the same question, and both are drawn together. None where either has no share
    in a metric.
    """
    metrics = _columns(*first)
    parts = [*first, *second]
    if len({part.shape for part in parts}) != 1:
        raise ValueError(f"paired models: got shapes {[p.shape for p in parts]}, expected one")
    sums_RC = resampled_sums(np.hstack(parts), seed)
    a, b, c, d = np.split(sums_RC, 4, axis=1)
    drawn_RM = divide(c, d) - divide(a, b)
    a, b, c, d = (part.sum(axis=0) for part in parts)
    values_M = divide(c, d) - divide(a, b)
    found: list[Difference | None] = []
    for m in range(metrics):
        estimate = interval(values_M[m], drawn_RM[:, m], level)
        above = share_above(drawn_RM[:, m])
        found.append(None if estimate is None else Difference(estimate, above))
    return found


def interval(value: float, drawn_R: Floats, level: float = LEVEL) -> Estimate | None:
    """`value` with the percentile interval of its resamples; None if it is not a number."""
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    if not np.isfinite(value) or not len(drawn_R):
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn_R, [tail, 1.0 - tail])
    return Estimate(float(value), float(low), float(high))


def simultaneous(comparisons: int) -> float:
    """The level that each of `comparisons` intervals needs to hold with the others at `LEVEL`
    (Bonferroni)."""
    return 1.0 - (1.0 - LEVEL) / comparisons


def share_above(drawn_R: Floats) -> float:
    """The share of the resamples that are above 0; a tie (within rounding) counts half."""
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    if not len(drawn_R):
        return 0.5
    ties = np.abs(drawn_R) <= 1e-12
    return float(np.mean(np.where(ties, 0.5, drawn_R > 0)))


def by_unit(units: Sequence[Hashable], values_NC: Floats) -> Floats:
    """The sums [Q, C] of the rows [N, C] of each unit (a question, or a cluster of questions), in
    order of appearance."""
    order = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    out = np.zeros((len(order), values_NC.shape[1]))
    np.add.at(out, [order[unit] for unit in units], values_NC)
    return out


def correlation(units: Sequence[Hashable], x_N: Floats, y_N: Floats, seed: int) -> Estimate | None:
    """Pearson's r over N cases, with an interval over their units (`by_unit`); None if x or y is
    constant."""
    if len(units) < 2:
        return None
    x, y = x_N - x_N.mean(), y_N - y_N.mean()
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    columns = by_unit(units, moments)
    drawn = _pearson(resampled_sums(columns, seed))
    return interval(float(_pearson(columns.sum(axis=0, keepdims=True))[0]), drawn)


def _pearson(sums: Floats) -> Floats:
    """Pearson's r from the sums [R, 6] of 1, x, y, xx, yy, xy; NaN without spread."""
    n, x, y, xx, yy, xy = sums.T
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    scale = n * n * 1e-12
    defined = (spread_x > scale) & (spread_y > scale)
    product = np.where(defined, spread_x * spread_y, 1.0)
    return np.where(defined, (n * xy - x * y) / np.sqrt(product), np.nan)


def _counts(questions: int, seed: int) -> Iterator[Floats]:
    """How often each question is drawn, one row per resample, in parts that fit in memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // questions)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = generator.integers(questions, size=(size, questions))
        drawn += np.arange(size)[:, None] * questions
        flat = np.bincount(drawn.ravel(), minlength=size * questions)
        yield flat.reshape(size, questions).astype(np.float64)


def _columns(numerators_QM: Floats, denominators_QM: Floats) -> int:
    if numerators_QM.shape != denominators_QM.shape:
        raise ValueError(
            f"numerators {numerators_QM.shape} and denominators {denominators_QM.shape} differ"
        )
    return numerators_QM.shape[1]


def divide(numerators: Floats, denominators: Floats) -> Floats:
    """Elementwise ratio; NaN where the denominator is 0."""
    out = np.full(numerators.shape, np.nan)
    return np.divide(numerators, denominators, out=out, where=denominators > 0)
