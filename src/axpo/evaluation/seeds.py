"""Intervals and p-values over training seeds *and* questions, for means over seeds and for paired
differences.

A figure here is the mean over seeds of each seed's own ratio of sums over questions. Every seed is
evaluated on the same questions, so seeds and questions are crossed random effects: a seed's value
on a question is the mean, plus what the seed adds, plus what the question adds (for every seed
alike), plus a rest (their interaction and the sampling of rollouts). The linearisation of a ratio
has this form: r + (numerator - r denominator) / mean denominator, whose mean over the questions is
the ratio r itself.

The mean squares of the two-way table (Cornfield and Tukey, 1956) then give the variance of the
mean over S seeds and Q questions as two independent parts:

- MS(seeds) / (S Q), which includes the rest, with S - 1 degrees of freedom;
- (MS(questions) - MS(rest)) / (S Q), taken as 0 if negative, with Q - 1 degrees of freedom.

The half width at level a is sqrt(sum of t(a, degrees of freedom)^2 x part). Whatever the two parts
are, this covers at least as often as it says (Banerjee, Sankhya 22, 1960); Satterthwaite's single t
covers too seldom at 3 and 5 seeds (`benchmarks/coverage.py` has the figures of both). By chance
three seeds may agree better than the rest allows, so the first part is never taken as less than
MS(rest) / (S Q) with its own (S - 1)(Q - 1) degrees of freedom.

The linearisation needs questions: if a seed has a share in fewer than `FEWEST` of the questions
that any seed has a share in (rollouts without a tool, on six questions), there is a value but no
interval.

A p-value is the level at which the interval reaches the null. Everything is in closed form: there
are no draws, and no generator's seed decides a digit.

Questions that are not independent form a cluster: their shares are added up first (`of_units`), and
a cluster then stands for a question in everything above.

Shapes: S seeds, Q questions, M metrics.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import stdtrit

from axpo.evaluation.bootstrap import LEVEL, Estimate, Floats, by_unit, divide

Ratios = tuple[Floats, Floats]
"""Numerators and denominators, [S, Q, M] each."""
FEWEST = 10
POWER = 0.8
_SMALLEST = 1e-12
"""The smallest p-value that is distinguished from 0."""


@dataclass(frozen=True, slots=True)
class Crossed:
    """A mean over seeds and questions, and the mean squares that tell how sure it is.

    If there is no interval (one seed, or too few questions), the mean squares, half widths and
    p-values are NaN.
    """

    value: float
    seeds: int
    questions: int
    ms_seeds: float
    ms_questions: float
    ms_rest: float

    @property
    def estimate(self) -> Estimate:
        """The value with its 95 % interval."""
        half = self.half(1.0 - LEVEL)
        return Estimate(self.value, self.value - half, self.value + half)

    def half(self, alpha: float) -> float:
        """Half the width of the interval of level 1 - alpha."""
        if math.isnan(self.ms_rest):
            return math.nan
        s, q = self.seeds - 1, self.questions - 1
        t_seeds, t_questions, t_rest = (-stdtrit(df, alpha / 2) for df in (s, q, s * q))
        seeds = max(t_seeds**2 * self.ms_seeds, t_rest**2 * self.ms_rest)
        questions = t_questions**2 * max(self.ms_questions - self.ms_rest, 0.0)
        return math.sqrt((seeds + questions) / (self.seeds * self.questions))

    def p(self, null: float = 0.0) -> float:
        """The two-sided p-value of the mean being `null`; NaN if nothing varies."""
        distance = abs(self.value - null)
        if not self.half(1.0 - LEVEL) > 1e-9:
            return math.nan
        if distance >= self.half(_SMALLEST):
            return _SMALLEST
        if distance <= self.half(1.0 - _SMALLEST):
            return 1.0
        bracket = (_SMALLEST, 1.0 - _SMALLEST)
        found = root_scalar(lambda a: self.half(a) - distance, bracket=bracket, xtol=1e-13)
        return float(found.root)

    def equivalence(self, margin: float) -> float:
        """The p-value of the mean being at least `margin` away from 0; small if it is shown to be
        closer (the larger of two one-sided tests, Schuirmann 1987)."""
        inside = margin - abs(self.value)
        nearest = self.p(math.copysign(margin, self.value))
        return nearest / 2.0 if inside > 0 else 1.0 - nearest / 2.0

    def detectable(self) -> float:
        """The true mean that 0.8 of such studies would find to differ from 0 at the 5 % level, if
        the spread is the measured one."""
        return self.half(1.0 - LEVEL) + self.half(2.0 * (1.0 - POWER))


def of_units(parts: Ratios, units: Sequence[Hashable]) -> Ratios:
    """`parts` with the questions of each unit (a cluster, or a question alone) added up."""
    numerators, denominators = (
        np.stack([by_unit(units, values_QM) for values_QM in part]) for part in parts
    )
    return numerators, denominators


def seed_means(parts: Ratios) -> list[Crossed | None]:
    """The mean over seeds of each metric's ratio.

    A seed that has no share in a metric is left out of it, and so is a question that no seed has a
    share in; None if nothing is left.
    """
    _check(parts)
    numerators, denominators = parts
    return [
        _crossed([(numerators[..., m], denominators[..., m])]) for m in range(numerators.shape[2])
    ]


def seed_differences(first: Ratios, second: Ratios) -> list[Crossed | None]:
    """Second minus first, paired: row s of both is the same seed, column q the same question."""
    _check(first)
    _check(second)
    if first[0].shape != second[0].shape:
        shapes = [part.shape for part in (*first, *second)]
        raise ValueError(f"paired models: got shapes {shapes}, expected one")
    return [
        _crossed([(part[0][..., m], part[1][..., m]) for part in (second, first)])
        for m in range(first[0].shape[2])
    ]


def holm(p_values: list[float]) -> list[float]:
    """The p-values adjusted for being a family (Holm, 1979), in the order given.

    The i-th smallest of n is multiplied by n - i + 1; the result is at least that of the next
    smaller p-value and at most 1.
    """
    found = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = highest
    return found


def student(values: NDArray[np.float64] | list[float]) -> Estimate | None:
    """The mean of one value per seed with Student's t interval; None below two values.

    It is for figures of training, whose questions differ from seed to seed: the spread of the
    seeds includes that of the questions.
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2 or not np.isfinite(found).all():
        return None
    mean = float(found.mean())
    quantile = float(stdtrit(len(found) - 1, (1.0 + LEVEL) / 2.0))
    half = quantile * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Estimate(mean, mean - half, mean + half)


def ratios_by_seed(parts: Ratios) -> Floats:
    """The ratios [S, M] of each seed; NaN where a seed has no share."""
    return divide(parts[0].sum(axis=1), parts[1].sum(axis=1))


def _crossed(sides: list[tuple[Floats, Floats]]) -> Crossed | None:
    """The mean of one ratio [S, Q], or of the first ratio minus the second."""
    seeds = np.all([d.sum(axis=1) > 0 for _, d in sides], axis=0)
    if not seeds.any():
        return None
    questions = np.any([(d[seeds] > 0).any(axis=0) for _, d in sides], axis=0)
    sides = [(n[seeds][:, questions], d[seeds][:, questions]) for n, d in sides]
    ratios_S = [n.sum(axis=1) / d.sum(axis=1) for n, d in sides]
    linear_SQ = [_linear(*side, ratios) for side, ratios in zip(sides, ratios_S, strict=True)]
    paired = len(sides) == 2
    value = float((ratios_S[0] - ratios_S[1] if paired else ratios_S[0]).mean())
    fewest = min(int((d > 0).sum(axis=1).min()) for _, d in sides)
    s, q = linear_SQ[0].shape
    if s < 2 or q < 2 or fewest < min(FEWEST, q):
        return Crossed(value, s, q, math.nan, math.nan, math.nan)
    squares = _mean_squares(linear_SQ[0] - linear_SQ[1] if paired else linear_SQ[0])
    return Crossed(value, s, q, *squares)


def _linear(numerators_SQ: Floats, denominators_SQ: Floats, ratios_S: Floats) -> Floats:
    """Values [S, Q] whose mean over the questions is each seed's ratio."""
    mean_S = denominators_SQ.mean(axis=1)
    residual_SQ = numerators_SQ - ratios_S[:, None] * denominators_SQ
    return ratios_S[:, None] + residual_SQ / mean_S[:, None]


def _mean_squares(values_SQ: Floats) -> tuple[float, float, float]:
    """The mean squares of the seeds, of the questions and of the rest."""
    s, q = values_SQ.shape
    mean = values_SQ.mean()
    of_seeds, of_questions = values_SQ.mean(axis=1) - mean, values_SQ.mean(axis=0) - mean
    rest = values_SQ - mean - of_seeds[:, None] - of_questions[None, :]
    return (
        q * float(of_seeds @ of_seeds) / (s - 1),
        s * float(of_questions @ of_questions) / (q - 1),
        float((rest**2).sum()) / ((s - 1) * (q - 1)),
    )


def _check(parts: Ratios) -> None:
    numerators, denominators = parts
    if numerators.shape != denominators.shape or numerators.ndim != 3:
        raise ValueError(
            f"numerators {numerators.shape} and denominators {denominators.shape}: "
            "expected both [seeds, questions, metrics]"
        )
